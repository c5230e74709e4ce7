//! Every service once: ports, order of start, what it needs. The command line, `photon up`, the listeners,
//! the ports in the documentation and the systemd units all follow from this table.

/// How a port is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TLS over TCP.
    Tls,
    /// Plain UDP and TCP: DNS only.
    Dns,
    /// TLS over TCP with a certificate on both sides, for nodes among themselves.
    Nodes,
    /// Sealed UDP, for nodes among themselves.
    Gossip,
}

/// One port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// What it is for.
    pub role: &'static str,
    /// Number before `--port-offset`.
    pub number: u16,
    /// Transport.
    pub transport: Transport,
}

/// One service.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Name: folder, unit, command, metrics.
    pub name: &'static str,
    /// What it is, in a few words.
    pub about: &'static str,
    /// Ports, the API first.
    pub ports: &'static [Port],
    /// Services that must be ready before it starts.
    pub needs: &'static [&'static str],
}

const fn tls(role: &'static str, number: u16) -> Port {
    Port { role, number, transport: Transport::Tls }
}

/// The front door: every resource API on one port.
pub const FRONT: Port = tls("api", 8443);

/// In the order of start.
pub static SERVICES: [Service; 7] = [
    Service {
        name: "chainfire",
        about: "cluster store, an etcd v3",
        ports: &[
            tls("api", 2379),
            Port { role: "raft", number: 2380, transport: Transport::Nodes },
            Port { role: "gossip", number: 2381, transport: Transport::Gossip },
        ],
        needs: &[],
    },
    Service { name: "iam", about: "who may do what", ports: &[tls("api", 8080)], needs: &["chainfire"] },
    Service {
        name: "flaredb",
        about: "distributed database",
        ports: &[tls("api", 2479)],
        needs: &["chainfire", "iam"],
    },
    Service {
        name: "prismnet",
        about: "tenant networks",
        ports: &[tls("api", 9091)],
        needs: &["chainfire", "iam"],
    },
    Service {
        name: "flashdns",
        about: "names",
        ports: &[Port { role: "dns", number: 53, transport: Transport::Dns }],
        needs: &["chainfire", "prismnet"],
    },
    Service {
        name: "plasmavmc",
        about: "virtual machines",
        ports: &[tls("api", 9090)],
        needs: &["chainfire", "iam", "prismnet"],
    },
    Service {
        name: "nightlight",
        about: "metrics, a Prometheus",
        ports: &[tls("api", 9095), tls("otlp-grpc", 4317), tls("otlp-http", 4318)],
        needs: &["iam"],
    },
];

/// The service of this name.
pub fn find(name: &str) -> Option<&'static Service> {
    SERVICES.iter().find(|s| s.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_starts_after_what_it_needs_and_ports_differ() {
        let mut seen: Vec<&str> = Vec::new();
        let mut ports = vec![FRONT.number];
        for s in &SERVICES {
            assert!(s.needs.iter().all(|n| seen.contains(n)), "{} starts too early", s.name);
            seen.push(s.name);
            for p in s.ports {
                assert!(!ports.contains(&p.number), "port {} twice", p.number);
                ports.push(p.number);
            }
        }
        for k in photon_api::registry().kinds() {
            assert!(find(k.service).is_some(), "kind {} belongs to no service", k.kind);
        }
    }
}
