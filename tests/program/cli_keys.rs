//! The commands that make keys, directories, configurations and environments, as a person runs them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;

struct Outcome {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs `sealcast` in a folder; arguments are split at spaces.
fn run(folder: &Path, arguments: &str) -> Outcome {
    run_with(folder, arguments, &[])
}

fn run_with(folder: &Path, arguments: &str, variables: &[(&str, &str)]) -> Outcome {
    let mut command = Command::cargo_bin("sealcast").expect("the binary");
    command.current_dir(folder).env_clear().envs(variables.iter().copied()).args(arguments.split(' '));
    let output = command.output().expect("run");
    Outcome {
        code: output.status.code().expect("an exit code"),
        stdout: String::from_utf8(output.stdout).expect("UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("UTF-8"),
    }
}

/// Runs and expects success; gives stdout.
fn done(folder: &Path, arguments: &str) -> String {
    let outcome = run(folder, arguments);
    assert_eq!(outcome.code, 0, "sealcast {arguments}\n{}", outcome.stderr);
    assert_eq!(outcome.stderr, "", "sealcast {arguments}");
    outcome.stdout
}

/// Runs and expects this exit code; gives stderr.
fn fails(folder: &Path, arguments: &str, code: i32) -> String {
    let outcome = run(folder, arguments);
    assert_eq!(outcome.code, code, "sealcast {arguments}\n{}{}", outcome.stdout, outcome.stderr);
    assert_eq!(outcome.stdout, "", "sealcast {arguments}");
    outcome.stderr
}

fn json(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("no JSON: {line}"))).collect()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a folder")
}

const INIT: &str = "init shop --kafka localhost:9092 --nodes a,b,c --destination orders --sender web --reader app";

#[test]
fn init_writes_an_environment_that_checks() {
    let folder = folder();
    let text = done(folder.path(), INIT);
    assert!(text.contains("sealcast node run --config shop/nodes/b/node.toml"), "{text}");
    let check = "config check shop/nodes/a/node.toml shop/nodes/b/node.toml shop/nodes/c/node.toml \
                 shop/senders/web/client.toml shop/readers/app/client.toml";
    let text = done(folder.path(), check);
    for found in
        ["shop version 1, good", "orders, 2 keys", "127.0.0.1:7403", "sender", "reader", "kafka at localhost:9092"]
    {
        assert!(text.contains(found), "{text}");
    }
    let mode = |path: &str| fs::metadata(folder.path().join(path)).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode("shop/nodes/a"), 0o700);
    assert_eq!(mode("shop/nodes/a/node.key"), 0o600);
    assert_eq!(mode("shop/operator/operator.key"), 0o600);
    assert!(fails(folder.path(), INIT, 2).contains("not empty"));
}

#[test]
fn init_takes_addresses_properties_and_formats() {
    let folder = folder();
    let init = "--format json init shop --kafka k1:9092,k2:9092 -X security.protocol=ssl -X ssl.ca.location=ca.pem \
                --nodes a=10.0.0.1:7401,b=10.0.0.2:7401,c=10.0.0.3:7401 --destination orders --destination bills \
                --sender web -o env --suite x25519 --valid-for 10d";
    assert!(fails(folder.path(), init, 2).contains("ssl.ca.location: ca.pem: No such file"));
    fs::write(folder.path().join("ca.pem"), "an authority").expect("written");
    let made = json(&done(folder.path(), init)).remove(0);
    assert_eq!((&made["v"], &made["environment"], &made["directory_version"]), (&1.into(), &"shop".into(), &1.into()));
    assert_eq!(made["nodes"]["a"], "env/nodes/a/node.toml");
    let shown = json(&done(folder.path(), "--format json config show env/senders/web/client.toml")).remove(0);
    assert_eq!(shown["transport"]["brokers"], serde_json::json!(["k1:9092", "k2:9092"]));
    let authority = shown["transport"]["properties"]["ssl.ca.location"].as_str().expect("text");
    let here = fs::canonicalize(folder.path()).expect("there");
    assert_eq!(Path::new(authority), here.join("ca.pem"), "it is found from every configuration's folder");
    done(folder.path(), "config check env/senders/web/client.toml env/nodes/b/node.toml");
    assert_eq!(shown["sender"]["suite"], "x25519");
    let state = done(
        folder.path(),
        "--format json directory verify env/operator/directory --operator env/operator/operator.key",
    );
    let state = json(&state).remove(0);
    assert_eq!((&state["v"], &state["validity"]), (&1.into(), &"ending".into()));
    let embedded = "init other --embedded --nodes a --destination orders --sender web";
    done(folder.path(), embedded);
    done(folder.path(), "config check other/nodes/a/node.toml other/senders/web/client.toml");

    // One process runs the nodes of the embedded transport; dev.rs does, and uses what it says to type then.
    let three = "init three --embedded --nodes a,b,c --destination orders --sender web --reader app --format json";
    let made = json(&done(folder.path(), three)).remove(0);
    let next: Vec<_> = made["next"].as_array().expect("a list").iter().map(|it| it.as_str().expect("text")).collect();
    assert_eq!(next[0], "sealcast dev three");
    assert!(next.len() >= 3 && next.iter().all(|command| !command.contains("node run")), "{next:?}");
    assert!(made["note"].as_str().expect("a note").contains("sealcast dev"), "{made}");
    let said = fails(folder.path(), next[1].split("| sealcast ").last().expect("a command"), 5);
    assert!(said.contains("nobody serves"), "{said}");
}

#[test]
fn wrong_usage_exits_with_2_and_says_how() {
    let folder = folder();
    for (arguments, says) in [
        ("nonsense", "nonsense"),
        ("init shop --nodes a --destination orders", "--kafka"),
        ("init shop --kafka k:1 --embedded x --nodes a --destination orders", "cannot be used with"),
        ("init Shop --kafka k:1 --nodes a --destination orders", "environment \"Shop\""),
        ("init shop --kafka k:1 --nodes a,a --destination orders", "twice"),
        ("init shop --kafka k:1 --nodes a=x:1,b --destination orders", "b has no address"),
        ("init shop --kafka k:1 --nodes a=x --destination orders", "node a"),
        ("init shop --kafka k:1 --nodes a=x:1,b=x:1 --destination orders", "node b: address"),
        ("init shop --kafka k:1 --nodes a --destination orders --suite x25519 --minimum-suite x-wing", "--suite"),
        ("keys generate destination", "--name"),
        ("keys generate sender --name x", "--name"),
        ("keys show absent.key", "absent.key"),
        ("config check absent.toml", "sealcast init"),
        ("directory add sender web --public absent.pub", "directory.toml"),
    ] {
        let error = fails(folder.path(), arguments, 2);
        assert!(error.contains(says), "sealcast {arguments}\n{error}");
        let arguments = format!("{arguments} --format json");
        let error = json(&fails(folder.path(), &arguments, 2)).remove(0);
        assert_eq!(
            (&error["v"], &error["error"]["kind"], &error["error"]["exit"]),
            (&1.into(), &"usage".into(), &2.into())
        );
        assert!(error["error"]["message"].as_str().expect("text").contains(says), "{error}");
    }
    assert!(fs::read_dir(folder.path()).expect("read").next().is_none(), "a refused command left files");
}

#[test]
fn a_directory_grows_from_its_first_draft() {
    let folder = folder();
    let at = folder.path();
    done(at, "keys generate operator");
    for (kind, name) in [("node", "a"), ("node", "b"), ("sender", "web"), ("reader", "app")] {
        done(at, &format!("keys generate {kind} -o {name}.key"));
    }
    let made = json(&done(at, "--format json directory create shop")).remove(0);
    let environment = made["environment_id"].as_str().expect("an id").to_owned();
    done(at, &format!("keys generate destination -o orders.key --name orders --environment {environment}"));
    done(at, "directory add node a --address 127.0.0.1:7401 --public a.pub");
    let add = "directory add sender web --public web.pub --destinations orders";
    let error = fails(at, add, 2);
    assert!(error.contains("no destination orders: it has none yet"), "{error}");
    let draft = fs::read_to_string(at.join("directory.toml")).expect("the draft");
    fs::write(at.join("other.toml"), format!("{draft}\n[[sender]]\nname = \"x\"\n")).expect("written");
    assert!(fails(at, "directory sign other.toml --operator operator.key", 2).contains("other.toml"));
    assert!(!at.join("directory").exists());
    done(at, "directory add destination orders --public orders.pub --nodes a --max-life 2d");
    done(at, "directory add reader app --public app.pub --destinations orders");
    assert!(fails(at, "directory add reader app --public web.pub", 2).contains("this is a sender key"));
    assert!(fails(at, "directory add reader app --public operator.pub", 2).contains("this is an operator key"));
    done(at, add);
    let taken = fails(at, "directory add sender shop --public web.pub --destinations orders", 2);
    assert!(taken.contains("is already that of sender shop (signing)") && taken.contains("sender web"), "{taken}");
    // Again changes nothing; something else takes its place only when that is meant.
    done(at, add);
    done(at, "keys generate sender -o new.key");
    let other = "directory add sender web --public new.pub --destinations orders";
    let error = fails(at, other, 2);
    assert!(error.contains("sends to orders: add --replace"), "{error}");
    done(at, &format!("{other} --replace"));
    done(at, &format!("{add} --replace"));
    let error = fails(at, "directory sign --operator new.key", 2);
    assert!(error.contains("new.key: this is a sender key, an operator key is needed here"), "{error}");
    assert_eq!(error.matches("new.key").count(), 1, "{error}");
    done(at, "directory sign --operator operator.key");
    let verify = "--format json directory verify --operator operator.pub";
    assert_eq!(json(&done(at, verify)).remove(0)["version"], 1);

    done(at, "directory add node b --address 127.0.0.1:7402 --public b.pub");
    done(at, "directory add destination orders --nodes a,b");
    // It may run already: then its nodes refuse other voters.
    let outcome = run(at, "directory sign --operator operator.key");
    assert!(outcome.code == 0 && outcome.stderr.contains("cannot change the voters"), "{}", outcome.stderr);
    assert_eq!(json(&done(at, verify)).remove(0)["version"], 2);
    assert!(fails(at, &format!("{verify} --minimum-version 3"), 1).contains("below 3"));
    done(at, "keys generate operator -o other.key");
    assert!(fails(at, "directory verify --operator other.key", 1).contains("signature"));
    assert!(fails(at, "directory sign --operator other.key", 2).contains("signature"));

    let rows = json(&done(at, "--format json directory show"));
    let names: Vec<_> = rows.iter().map(|row| row["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["shop", "a", "b", "orders", "web", "app"]);
    assert!(rows.iter().all(|row| row["v"] == 1));
    assert!(fails(at, "directory remove node b", 2).contains("destination orders still names it"));
    assert!(fails(at, "directory remove sender nobody", 2).contains("no sender nobody"));
    done(at, "directory remove sender web");
    done(at, "keys seal orders.key --node b -o orders.keyring");
    assert!(fails(at, "keys seal orders.key --node c -o c.keyring", 2).contains("no node c"));
    let mut text = fs::read_to_string(at.join("directory")).expect("read");
    text = text.replace("127.0.0.1:7402", "127.0.0.1:9999");
    fs::write(at.join("directory"), text).expect("written");
    assert!(fails(at, "directory verify --operator operator.pub", 1).contains("signature"));
}

#[test]
fn one_command_adds_shows_signs_and_writes_the_folder() {
    let folder = folder();
    let at = folder.path();
    done(at, INIT);
    let before = fs::read(at.join("shop/operator/directory")).expect("read");
    let add = "directory add sender new --destinations orders --operator shop/operator/operator.key";
    assert!(done(at, &format!("{add} --dry-run")).contains("Nothing was written"));
    assert_eq!(fs::read(at.join("shop/operator/directory")).expect("read"), before);
    assert!(!at.join("shop/senders/new").exists());

    let text = done(at, add);
    for says in ["added   sender  new", "version 2 is signed", "cp shop/operator/directory shop/nodes/a/directory"] {
        assert!(text.contains(says), "{text}");
    }
    let mode = fs::metadata(at.join("shop/senders/new/sender.key")).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let text = done(at, "config check shop/senders/new/client.toml");
    assert!(text.contains("shop version 2, good") && text.contains("kafka at localhost:9092"), "{text}");
    assert!(done(at, add).contains("Nothing changes: version 2 stays"));
    // A change of what it may do keeps its key; a key of its own is taken with --public.
    done(at, "directory add destination bills --readers app --operator shop/operator/operator.key");
    let wider = "directory add sender new --destinations orders,bills --operator shop/operator/operator.key";
    assert!(fails(at, wider, 2).contains("--replace"));
    let told = json(&done(at, &format!("{wider} --replace --format json"))).remove(0);
    let changes = told["changes"].as_array().expect("a list");
    assert_eq!((changes.len(), &changes[0]["field"]), (1, &"destinations".into()), "{told}");
    assert_eq!((&changes[0]["before"], &changes[0]["after"]), (&"orders".into(), &"bills, orders".into()));
    for node in ["a", "b", "c"] {
        fs::copy(at.join("shop/operator/directory"), at.join(format!("shop/nodes/{node}/directory"))).expect("copied");
        let text = done(at, &format!("config check shop/nodes/{node}/node.toml"));
        assert!(text.contains("bills, 2 keys"), "{text}");
    }
    // Where machines are others, files go there; a folder that is there is never written into.
    let far = "init far --kafka k:1 --nodes a=10.0.0.1:7401,b=10.0.0.2:7401 --listen 0.0.0.0 --http 0.0.0.0 \
               --destination orders --reader app";
    let outcome = run(at, far);
    assert!(outcome.code == 0 && outcome.stderr.contains("of 2 nodes both are needed"), "{}", outcome.stderr);
    let text = outcome.stdout;
    assert!(text.contains("scp -pr far/nodes/b 10.0.0.2: && ssh -f 10.0.0.2"), "{text}");
    let shown = json(&done(at, "--format json config show far/nodes/a/node.toml")).remove(0);
    assert_eq!((&shown["node"]["listen"], &shown["node"]["http"]), (&"0.0.0.0:7401".into(), &"0.0.0.0:7501".into()));
    fs::create_dir_all(at.join("elsewhere/readers/audit")).expect("made");
    fs::write(at.join("elsewhere/readers/audit/notes"), "mine").expect("written");
    let audit = "directory add reader audit --destinations orders --operator far/operator/operator.key";
    assert!(fails(at, &format!("{audit} -o elsewhere"), 2).contains("is not empty"));
    let text = done(at, audit);
    assert!(text.contains("scp -p far/operator/directory 10.0.0.1:a/directory"), "{text}");
    assert!(done(at, "directory remove reader audit --operator far/operator/operator.key").contains("removed  reader"));
    let verify = "--format json directory verify far/operator/directory --operator far/operator/operator.key";
    assert_eq!(json(&done(at, verify)).remove(0)["version"], 3);
    // From the operator's own folder the environment is the one above it; commands name folders as a shell takes them.
    fs::create_dir(at.join("my shop")).expect("made");
    fs::rename(at.join("shop"), at.join("my shop/shop")).expect("renamed");
    let desk = at.join("my shop/shop/operator");
    let text = done(&desk, "directory add sender third --destinations orders --operator operator.key");
    assert!(text.contains("version 5 is signed") && text.contains("cp directory ../nodes/a/directory"), "{text}");
    assert!(at.join("my shop/shop/senders/third/client.toml").exists(), "{text}");
    let outcome = Command::new(env!("CARGO_BIN_EXE_sealcast"))
        .args(["directory", "add", "sender", "fourth", "--destinations", "orders"])
        .args(["--operator", "my shop/shop/operator/operator.key"])
        .current_dir(at)
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&outcome.stdout);
    assert!(text.contains("cp 'my shop/shop/operator/directory' 'my shop/shop/nodes/a/directory'"), "{text}");
    assert!(text.contains("pkill -HUP -f '[n]ode run --config my shop/shop/nodes/a/node.toml'"), "{text}");
    // Where one process runs all nodes, it is that one.
    done(at, "init trial --embedded --nodes a,b,c --destination orders --sender web --reader app");
    let desk = "--operator trial/operator/operator.key";
    let text = done(at, &format!("directory add sender shop --destinations orders {desk}"));
    assert!(text.contains("pkill -HUP -f '[s]ealcast dev .*trial'") && !text.contains("ode run"), "{text}");
    let text = done(at, &format!("directory add destination bills {desk}"));
    assert!(text.contains("  sealcast dev trial &") && !text.contains("ode run"), "{text}");
    assert_eq!(text.matches("pkill -TERM").count(), 1, "{text}");
}

#[test]
fn what_a_transport_names_is_found_from_a_new_folder_too() {
    let folder = folder();
    let at = folder.path();
    done(at, INIT);
    let desk = at.join("desk");
    fs::create_dir_all(desk.join("secrets")).expect("made");
    fs::write(desk.join("ca.pem"), "an authority").expect("written");
    for (name, text) in [("secrets/password", "hush"), ("user.key", "hushed")] {
        fs::write(desk.join(name), text).expect("written");
    }
    let transport = "[transport]\nbrokers = [\"localhost:9092\"]\n[transport.properties]\n\
                     \"security.protocol\" = \"sasl_ssl\"\n\"ssl.ca.location\" = \"ca.pem\"\n\
                     \"sasl.password_file\" = \"secrets/password\"\n\"ssl.key.password_file\" = \"user.key\"\n";
    fs::write(desk.join("transport.toml"), transport).expect("written");
    let add = "directory add sender new --destinations orders --operator shop/operator/operator.key \
               --transport desk/transport.toml";
    let open = |name: &str, mode: u32| {
        fs::set_permissions(desk.join(name), fs::Permissions::from_mode(mode)).expect("set");
    };
    for name in ["secrets/password", "user.key"] {
        open("secrets/password", 0o600);
        open("user.key", 0o600);
        open(name, 0o644);
        assert!(fails(at, add, 2).contains("chmod go-rwx"), "{name}");
        assert!(!at.join("shop/senders/new").exists());
        open(name, 0o600);
    }
    done(at, add);
    done(at, "config check shop/senders/new/client.toml");
    let shown = json(&done(at, "--format json config show shop/senders/new/client.toml")).remove(0);
    let of = |name: &str| shown["transport"]["properties"][name].as_str().expect("text").to_owned();
    let here = fs::canonicalize(&desk).expect("there");
    assert_eq!(Path::new(&of("ssl.ca.location")), here.join("ca.pem"));
    assert_eq!(Path::new(&of("sasl.password_file")), here.join("secrets/password"));
    assert_eq!(fs::read_to_string(at.join("shop/senders/new/user.key")).expect("beside it"), "hushed");
    fs::remove_file(desk.join("ca.pem")).expect("removed");
    assert!(fails(at, &add.replace("new", "newer"), 2).contains("ssl.ca.location"));
}

#[test]
fn key_files_are_the_owners_alone_and_show_their_public_part_only() {
    let folder = folder();
    let at = folder.path();
    for kind in ["sender", "node", "operator", "reader"] {
        done(at, &format!("keys generate {kind}"));
        let key = at.join(format!("{kind}.key"));
        assert_eq!(fs::metadata(&key).expect("there").permissions().mode() & 0o777, 0o600);
        let secret = fs::read_to_string(&key).expect("text").lines().last().expect("a line").to_owned();
        let shown = done(at, &format!("keys show {kind}.key"));
        assert_eq!(shown, done(at, &format!("keys show {kind}.pub")));
        assert!(shown.contains(&format!("kind = \"{kind}\"")) && !shown.contains(&secret[26..]));
        let error = fails(at, &format!("keys generate {kind}"), 1);
        assert!(error.contains("never overwritten: use -o"), "{error}");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("mode");
        assert!(fails(at, &format!("keys show {kind}.key"), 2).contains("chmod go-rwx"));
    }
}

#[test]
fn config_shows_what_is_in_effect_and_redacts() {
    let folder = folder();
    let at = folder.path();
    done(at, INIT);
    let variables = [
        ("SEALCAST__TRANSPORT__PROPERTIES__SASL_PASSWORD", "hunter2"),
        ("SEALCAST__TRANSPORT__BROKERS", "elsewhere:1"),
        ("SEALCAST__NODE__HTTP", "0.0.0.0:80"),
    ];
    let outcome = run_with(at, "config show shop/nodes/a/node.toml", &variables);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (0, ""));
    for shown in ["\"sasl.password\" = \"(redacted)\"", "elsewhere:1", "http = \"0.0.0.0:80\""] {
        assert!(outcome.stdout.contains(shown), "{}", outcome.stdout);
    }
    let outcome = run_with(at, "config check shop/nodes/a/node.toml", &variables);
    assert!(outcome.code == 0 && !outcome.stdout.contains("hunter2"), "{}", outcome.stderr);
    let outcome = run_with(at, "config check shop/nodes/a/node.toml", &[("SEALCAST__NODE__COLOUR", "red")]);
    assert_eq!(outcome.code, 2);
    assert!(outcome.stderr.contains("colour"), "{}", outcome.stderr);
    fs::set_permissions(at.join("shop/nodes/a/node.key"), fs::Permissions::from_mode(0o640)).expect("mode");
    assert!(fails(at, "config check shop/nodes/a/node.toml", 2).contains("node.key_file"));
}

#[test]
fn every_command_has_help_with_an_example_and_a_page() {
    fn walk(command: &clap::Command, path: &str, pages: &mut Vec<String>) {
        pages.push(path.replace(' ', "-") + ".1");
        assert!(command.get_about().is_some(), "{path} has no help");
        let inner: Vec<_> = command.get_subcommands().filter(|inner| inner.get_name() != "help").collect();
        let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let of_entry = path.starts_with("sealcast directory add ");
        assert!(of_entry || after.contains("Example"), "{path} has no example");
        for inner in inner {
            walk(inner, &format!("{path} {}", inner.get_name()), pages);
        }
    }
    let folder = folder();
    let mut pages = Vec::new();
    walk(&sealcast::cli::command(), "sealcast", &mut pages);
    done(folder.path(), "man -o pages");
    for page in pages {
        assert!(folder.path().join("pages").join(&page).exists(), "{page}");
    }
    assert!(done(folder.path(), "man").contains(".TH sealcast 1"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(done(folder.path(), &format!("completion {shell}")).contains("sealcast"));
    }
    assert_eq!(done(folder.path(), "--version"), format!("sealcast {}\n", env!("CARGO_PKG_VERSION")));
    assert!(done(folder.path(), "--help").contains("Exit codes"));
    assert!(done(folder.path(), "init --help").contains("Example"));
}
