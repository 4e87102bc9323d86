//! Three real brokers behind proxies, and what befalls them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::kafka::Cluster;
use super::proxy::{Pass, Proxy};

/// What befalls a broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Every byte from and to it comes so much later.
    Late(Duration),
    /// Its port is open, and nothing is answered.
    Silent,
    /// Its process stands still (SIGSTOP).
    Paused,
    /// Killed.
    Dead,
}

/// Brokers 1 to 3 of one test, whom clients and each other see through proxies alone.
pub struct Troubled {
    pub cluster: Cluster,
    proxies: BTreeMap<u32, Proxy>,
    ports: BTreeMap<u32, u16>,
}

impl Troubled {
    pub fn start() -> Self {
        let (cluster, proxies) = Cluster::start_behind_proxies();
        let proxies: BTreeMap<u32, Proxy> = (1..).zip(proxies).collect();
        let ports = proxies.iter().map(|(number, proxy)| (*number, proxy.port())).collect();
        Self { cluster, proxies, ports }
    }

    /// `host:port` of all three, comma-separated.
    pub fn brokers(&self) -> String {
        let addresses: Vec<_> = self.ports.values().map(|port| format!("127.0.0.1:{port}")).collect();
        addresses.join(",")
    }

    pub fn begin(&mut self, broker: u32, trouble: Trouble) {
        match trouble {
            Trouble::Late(by) => self.proxies[&broker].set(Pass::After(by)),
            Trouble::Silent => self.proxies[&broker].set(Pass::Never),
            Trouble::Paused => self.cluster.pause(broker),
            Trouble::Dead => {
                self.cluster.kill(broker);
                // Nobody listens where a dead broker was.
                self.proxies.remove(&broker);
            }
        }
    }

    /// Ends it, and waits until a dead broker serves, which takes as long as one of the others is paused.
    pub fn end(&mut self, broker: u32, trouble: Trouble) {
        self.end_at_once(broker, trouble);
        if trouble == Trouble::Dead {
            self.cluster.serves();
        }
    }

    /// The same without waiting.
    pub fn end_at_once(&mut self, broker: u32, trouble: Trouble) {
        match trouble {
            Trouble::Late(_) | Trouble::Silent => self.proxies[&broker].set(Pass::After(Duration::ZERO)),
            Trouble::Paused => self.cluster.resume(broker),
            Trouble::Dead => {
                self.proxies.insert(broker, Proxy::start(self.ports[&broker], self.cluster.port(broker)));
                self.cluster.run(broker);
            }
        }
    }
}
