//! A real Apache Kafka for tests: three brokers, each also a controller, on free ports of the loopback interface, with
//! nothing but a JDK and what Maven fetches once into target/kafka-jars.
//!
//! A broker dies with the test process, however that ends: a shell stands over it and kills it when its own standard input
//! closes. Tests that hurt brokers start a cluster of their own; all others share one, or use the cluster that
//! SEALCAST_TEST_KAFKA names (`host:port`, comma-separated).

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::ports;
use super::proxy::Proxy;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rustix::process::{Pid, Signal, kill_process};

/// Names a cluster to use instead, for tests that do not hurt brokers.
pub const USE_CLUSTER: &str = "SEALCAST_TEST_KAFKA";

const KAFKA: &str = "4.3.0";
const READY: Duration = Duration::from_secs(120);

const HELP: &str = "These tests need a real Kafka. Either run ./scripts/test, which makes sure of a JDK (17 or later) and Maven \
and fetches Kafka's jars once; or name a cluster that tests may use: SEALCAST_TEST_KAFKA=host:port,host:port";

/// The cluster that tests share: `host:port`, comma-separated. Started by the first that asks.
pub fn shared() -> String {
    static SHARED: OnceLock<Cluster> = OnceLock::new();
    match std::env::var(USE_CLUSTER) {
        Ok(brokers) if !brokers.is_empty() => brokers,
        _ => SHARED.get_or_init(Cluster::start).brokers(),
    }
}

/// Three brokers, numbered 1 to 3, of this test alone.
pub struct Cluster {
    folder: PathBuf,
    brokers: Vec<Broker>,
    machine: Machine,
}

/// What the brokers' Java machines are told.
#[derive(Clone, Copy)]
enum Machine {
    /// To start soon and take little: for tests.
    Quick,
    /// To be fast when they have run for a while, as Kafka's own scripts tell them: for measurements.
    Fast,
}

impl Machine {
    fn words(self) -> &'static [&'static str] {
        match self {
            Self::Quick => &["-Xmx512m", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"],
            Self::Fast => &[
                "-Xmx1g",
                "-Xms512m",
                "-server",
                "-XX:+UseG1GC",
                "-XX:MaxGCPauseMillis=20",
                "-XX:InitiatingHeapOccupancyPercent=35",
            ],
        }
    }

    /// What is written into brokers' properties.
    fn lines(self) -> &'static str {
        match self {
            Self::Quick => "",
            // Gigabytes a minute go through them: what topics need not keep must go soon.
            Self::Fast => "log.retention.check.interval.ms=1000\nlog.segment.delete.delay.ms=1000\n",
        }
    }
}

struct Broker {
    number: u32,
    port: u16,
    running: Option<Running>,
}

struct Running {
    shell: Child,
    /// Closing it ends the broker.
    leash: Option<ChildStdin>,
    pid: Pid,
}

/// Where a broker of a cluster lives, for whoever adds to its configuration.
pub struct Place<'a> {
    /// 1 to 3.
    pub number: u32,
    /// Where it listens without TLS, for other brokers and for tests.
    pub port: u16,
    /// Ports that nothing listens on: for listeners of the test's own.
    pub further_ports: [u16; 2],
    /// Where its controller listens.
    pub controller_port: u16,
    /// The cluster's folder, which goes with the cluster: for key stores and the like.
    pub folder: &'a Path,
}

impl Cluster {
    /// Starts a cluster and waits until it serves. Panics with what to do when it cannot.
    pub fn start() -> Self {
        Self::start_with(|_| String::new())
    }

    /// The same behind a proxy for each broker, in their order: clients and brokers see the proxies alone.
    pub fn start_behind_proxies() -> (Self, Vec<Proxy>) {
        Self::behind_proxies(Machine::Quick)
    }

    /// The same with brokers that are to be measured: they take more memory and start later.
    pub fn start_fast_behind_proxies() -> (Self, Vec<Proxy>) {
        Self::behind_proxies(Machine::Fast)
    }

    fn behind_proxies(machine: Machine) -> (Self, Vec<Proxy>) {
        let proxies = std::cell::RefCell::new(Vec::new());
        let further = |place: &Place<'_>| {
            let proxy = Proxy::start(place.further_ports[0], place.port);
            let line = format!("advertised.listeners=PLAINTEXT://127.0.0.1:{}\n", proxy.port());
            proxies.borrow_mut().push(proxy);
            line
        };
        let cluster = Self::start_on(machine, further, &[]);
        (cluster, proxies.into_inner())
    }

    /// Without proxies, with brokers that are to be measured.
    pub fn start_fast() -> Self {
        Self::start_on(Machine::Fast, |_| String::new(), &[])
    }

    /// The same with lines that `further` adds to each broker's properties; one that is there already is replaced. The
    /// listener without TLS at `port` must stay, for the brokers themselves.
    pub fn start_with(further: impl Fn(&Place<'_>) -> String) -> Self {
        Self::start_formatted(further, &[])
    }

    /// The same, with options of `kafka-storage format`: users that a cluster has from its first moment.
    pub fn start_formatted(further: impl Fn(&Place<'_>) -> String, options: &[String]) -> Self {
        Self::start_on(Machine::Quick, further, options)
    }

    fn start_on(machine: Machine, further: impl Fn(&Place<'_>) -> String, options: &[String]) -> Self {
        let jars = jars();
        let folder = folder();
        let ports = ports::free(12);
        let (own, others) = ports.split_at(3);
        let (controllers, others) = others.split_at(3);
        let (first, second) = others.split_at(3);
        let further_ports = first.iter().zip(second).map(|(first, second)| [*first, *second]);
        let mut id = [0; 16];
        getrandom::fill(&mut id).expect("randomness");
        // Written down it must not begin with a hyphen: that would be an option of the next command.
        id[0] &= 0x7f;
        let id = data_encoding::BASE64URL_NOPAD.encode(&id);
        fs::write(folder.join("log4j2.properties"), LOG).expect("the logging configuration is written");
        let voters: Vec<_> =
            controllers.iter().enumerate().map(|(index, port)| format!("{}@127.0.0.1:{port}", index + 1)).collect();
        let mut formatting = Vec::new();
        let ports = own.iter().zip(controllers).zip(further_ports);
        for (number, ((port, controller), further_ports)) in (1..).zip(ports) {
            let (port, controller_port) = (*port, *controller);
            let place = Place { number, port, further_ports, controller_port, folder: &folder };
            // Of two lines of one name the later counts.
            let text = properties(&place, &voters.join(",")) + machine.lines() + &further(&place);
            fs::write(folder.join(format!("{number}.properties")), text).expect("a broker's configuration is written");
            let mut format = java(Machine::Quick, &jars, &folder);
            format.args(["kafka.tools.StorageTool", "format", "-t", &id, "-c"]).arg(format!("{number}.properties"));
            format.args(options);
            let log = fs::File::create(folder.join(format!("format-{number}.log"))).expect("a log");
            let child = format.stdout(log.try_clone().expect("a log")).stderr(log).spawn().expect("java runs");
            formatting.push((number, child));
        }
        for (number, mut child) in formatting {
            let ended = child.wait().expect("java ends");
            let log = fs::read_to_string(folder.join(format!("format-{number}.log"))).unwrap_or_default();
            assert!(ended.success(), "a broker's folder could not be prepared:\n{log}\n{HELP}");
        }
        let brokers =
            (1..).zip(own).map(|(number, port)| Broker { number, port: *port, running: None }).collect::<Vec<_>>();
        let mut cluster = Self { folder, brokers, machine };
        for number in 1..=3 {
            cluster.run(number);
        }
        cluster.wait_for(3);
        cluster
    }

    /// `host:port` of all three, comma-separated.
    pub fn brokers(&self) -> String {
        let addresses: Vec<_> = self.brokers.iter().map(|broker| format!("127.0.0.1:{}", broker.port)).collect();
        addresses.join(",")
    }

    /// Where one of them listens itself, whatever it advertises.
    pub fn port(&self, number: u32) -> u16 {
        self.brokers.iter().find(|broker| broker.number == number).expect("brokers are numbered 1 to 3").port
    }

    /// Kills a broker as kill -9 does, and waits until it is gone.
    pub fn kill(&mut self, number: u32) {
        if let Some(running) = self.broker(number).running.take() {
            running.end();
        }
    }

    /// Ends a broker in order (SIGTERM), as an operator does who restarts it, and waits until it is gone; after `patience` it is
    /// killed.
    pub fn end(&mut self, number: u32, patience: Duration) {
        self.signal(number, Signal::TERM);
        let end = Instant::now() + patience;
        let running = self.broker(number).running.take().expect("the broker runs");
        // Its shell waits for the leash, so what has ended is still there as a zombie.
        let stat = format!("/proc/{}/stat", running.pid.as_raw_nonzero());
        let gone = || {
            fs::read_to_string(&stat)
                .map_or(true, |text| text.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z')))
        };
        while !gone() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        running.end();
    }

    /// The process of each broker that runs.
    pub fn processes(&self) -> Vec<u32> {
        let pid = |broker: &Broker| Some(broker.running.as_ref()?.pid.as_raw_nonzero().get().unsigned_abs());
        self.brokers.iter().filter_map(pid).collect()
    }

    /// Stops a broker in its tracks (SIGSTOP): its connections stand, nothing answers.
    pub fn pause(&mut self, number: u32) {
        self.signal(number, Signal::STOP);
    }

    /// Lets a paused broker go on (SIGCONT).
    pub fn resume(&mut self, number: u32) {
        self.signal(number, Signal::CONT);
    }

    /// Starts a killed broker again and waits until the cluster counts it.
    pub fn start_again(&mut self, number: u32) {
        self.run(number);
        self.serves();
    }

    /// Waits until all brokers that run are counted by each other.
    pub fn serves(&self) {
        self.wait_for(self.brokers.iter().filter(|broker| broker.running.is_some()).count());
    }

    /// Runs one of Kafka's own tools in the cluster's folder: its class and its words. Gives what it printed.
    pub fn tool(&self, class: &str, words: &[&str]) -> String {
        let output = java(Machine::Quick, &jars(), &self.folder).arg(class).args(words).output().expect("java runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{class} {}:\n{text}", words.join(" "));
        text
    }

    /// Where brokers, logs and whatever the test's own properties name lie.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the brokers keep their records.
    pub fn data_folders(&self) -> Vec<PathBuf> {
        self.brokers.iter().map(|broker| self.folder.join(format!("data{}", broker.number))).collect()
    }

    fn broker(&mut self, number: u32) -> &mut Broker {
        self.brokers.iter_mut().find(|broker| broker.number == number).expect("brokers are numbered 1 to 3")
    }

    fn signal(&mut self, number: u32, signal: Signal) {
        let running = self.broker(number).running.as_ref().expect("the broker runs");
        kill_process(running.pid, signal).expect("the signal is sent");
    }

    /// Starts a killed broker again, without waiting.
    pub fn run(&mut self, number: u32) {
        let mut java = java(self.machine, &jars(), &self.folder);
        java.args(["kafka.Kafka", &format!("{number}.properties")]);
        let words: Vec<_> = std::iter::once(java.get_program()).chain(java.get_args()).map(ToOwned::to_owned).collect();
        // The shell's own child stays a zombie until the shell waits for it, so its pid is never another process's.
        let script = r#"log=$1; shift; "$@" >>"$log" 2>&1 </dev/null & echo $!; read -r _; kill -9 $!; wait $!"#;
        let mut shell = Command::new("sh")
            .args(["-c", script, "sh", &format!("broker-{number}.log")])
            .args(words)
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh runs");
        let mut line = String::new();
        let output = shell.stdout.take().expect("its output");
        BufReader::new(output).read_line(&mut line).expect("the broker's pid");
        let pid = line.trim().parse().ok().and_then(Pid::from_raw).expect("the broker's pid");
        let leash = shell.stdin.take();
        self.broker(number).running = Some(Running { shell, leash, pid });
    }

    /// Waits until this many brokers serve, as each of those that run sees it.
    fn wait_for(&self, count: usize) {
        let began = Instant::now();
        for broker in self.brokers.iter().filter(|broker| broker.running.is_some()) {
            let address = format!("127.0.0.1:{}", broker.port);
            loop {
                let client: BaseConsumer = ClientConfig::new()
                    .set("bootstrap.servers", &address)
                    .set("log_level", "0")
                    .create()
                    .expect("a client");
                let metadata = client.fetch_metadata(None, Duration::from_secs(1));
                if metadata.is_ok_and(|metadata| metadata.brokers().len() >= count) {
                    break;
                }
                if began.elapsed() > READY {
                    let log = fs::read_to_string(self.folder.join(format!("broker-{}.log", broker.number)));
                    panic!("broker {} does not serve:\n{}\n{HELP}", broker.number, log.unwrap_or_default());
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

impl Running {
    fn end(mut self) {
        self.leash = None;
        self.shell.wait().expect("the shell ends");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for broker in &mut self.brokers {
            if let Some(running) = broker.running.take() {
                running.end();
            }
        }
        if !std::thread::panicking() {
            fs::remove_dir_all(&self.folder).expect("the cluster's folder is removed");
        }
    }
}

fn java(machine: Machine, jars: &Path, folder: &Path) -> Command {
    let mut java = Command::new("java");
    java.args(machine.words())
        .arg("-cp")
        .arg(format!("{}/*", jars.display()))
        .arg(format!("-Dlog4j2.configurationFile={}", folder.join("log4j2.properties").display()))
        .current_dir(folder)
        .stdin(Stdio::null());
    java
}

/// A fresh folder; those of test processes that are gone are removed.
fn folder() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let all = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kafka");
    fs::create_dir_all(&all).expect("the clusters' folder");
    for entry in fs::read_dir(&all).expect("the clusters' folder").flatten() {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.split('-').next()?.parse::<u32>().ok());
        if process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists()) {
            // Two test programs may remove the same one.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let folder = all.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    fs::create_dir(&folder).expect("a fresh folder");
    folder
}

/// The folder of Kafka's jars; fetched once.
fn jars() -> PathBuf {
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    let jars = target.join("kafka-jars");
    let whole = || jars.join(format!("kafka_2.13-{KAFKA}.jar")).exists();
    let runs = Command::new("java").arg("-version").output();
    assert!(runs.is_ok_and(|output| output.status.success()), "there is no `java`. {HELP}");
    if whole() {
        return jars;
    }
    fs::create_dir_all(&target).expect("the target folder");
    let lock = fs::File::create(target.join("kafka-jars.lock")).expect("a lock file");
    lock.lock().expect("the lock");
    if !whole() {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka/fetch");
        let fetched = Command::new(&script).output().expect("scripts/kafka/fetch runs");
        let log = String::from_utf8_lossy(&fetched.stderr).into_owned();
        assert!(fetched.status.success() && whole(), "Kafka's jars could not be fetched:\n{log}\n{HELP}");
    }
    jars
}

const LOG: &str = "\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
";

fn properties(place: &Place<'_>, voters: &str) -> String {
    let Place { number, port, controller_port: controller, folder, .. } = place;
    let data = folder.join(format!("data{number}"));
    let rack = match number {
        1 => "broker.rack=one\n",
        2 => "broker.rack=two\n",
        _ => "", // declares none: it fails by itself
    };
    format!(
        "\
process.roles=broker,controller
node.id={number}
{rack}controller.quorum.voters={voters}
listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}
advertised.listeners=PLAINTEXT://127.0.0.1:{port}
controller.listener.names=CONTROLLER
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
log.dirs={}
offsets.topic.replication.factor=3
offsets.topic.num.partitions=3
transaction.state.log.replication.factor=3
transaction.state.log.min.isr=2
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
broker.session.timeout.ms=9000
log.cleaner.dedupe.buffer.size=2097152
num.network.threads=2
num.io.threads=4
",
        data.display()
    )
}
