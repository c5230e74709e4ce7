//! A node: all services of this process, wired. What a service needs of another it gets here, as a trait,
//! a view of resources or a socket; the services do not know each other.

mod cluster;
mod coordinator;
mod dns;
mod flaredb;
mod forward;
mod history;
mod identity;
mod listeners;
mod lock;
mod metrics;
pub mod report;

pub use cluster::facts;
pub use identity::{Paths, adopt, read_cluster};
pub use lock::{Lock, running_pid};

use crate::config::{Config, Networking, is_root};
use coordinator::Coordinator;
use flaredb::FlareStore;
use forward::Forward;
use iam::{Iam, login::Login};
use identity::Identity;
use metrics::Metrics;
use photon_auth::{Gate, LiveCertificate};
use photon_base::Result;
use photon_gossip::Gossip;
use photon_reconcile::{Lease, Manager, View};
use photon_resource::Store;
use photon_rt::{task::Tasks, time::now};
use plasmavmc::agent::{
    ConsoleRoute, ContentRoute, Disks, HostAgent, ImageKeeper, Images, Incarnations, report_host,
};
use prismnet::{
    agent::HostNet,
    engine::{DataPlane, LinuxPlane, UserPlane},
};
use report::{Event, Reporter};
use std::sync::{Arc, OnceLock, atomic::AtomicBool};

/// A running node.
pub struct Node {
    tasks: Tasks,
    coordinator: Coordinator,
    flaredb: OnceLock<Arc<FlareStore>>,
    gossip: Gossip,
    _lock: Lock,
}

/// What the wiring of all services shares.
pub(crate) struct Shared {
    pub config: Config,
    pub paths: Paths,
    pub identity: Identity,
    pub certificate: Arc<LiveCertificate>,
    pub store: Store,
    /// Where the records are, if not in this node's own store.
    pub coordinator: Option<String>,
    pub flaredb: Arc<FlareStore>,
    pub view: View,
    pub gate: Gate,
    pub login: Arc<Login>,
    pub metrics: Arc<Metrics>,
    pub tasks: Tasks,
    /// Whether the store answered its last question.
    pub store_answers: AtomicBool,
}

impl Node {
    /// Starts everything in the order of the table, or nothing: an error stops what was started.
    pub async fn start(config: Config, lock: Lock, reporter: &Reporter) -> Result<Node> {
        let begun = now();
        let tasks = Tasks::new();
        let paths = Paths::new(&config.data_dir);
        let identity = Identity::open(&config, &paths)?;

        let certificate = LiveCertificate::new(&identity.server)?;

        let step = reporter.step("chainfire");
        let gossip = cluster::gossip(&config, &identity, &tasks).await?;
        let coordinator =
            Coordinator::open(&config, &paths, &identity, &certificate, &gossip, reporter).await?;
        step.done();

        history::start(coordinator.clone(), paths.history(), &tasks);
        let flaredb = OnceLock::new();
        let node = Node { tasks: tasks.clone(), coordinator, flaredb, gossip, _lock: lock };
        match node.start_services(config, paths, identity, certificate, reporter).await {
            Ok(ready) => {
                reporter.emit(&Event::Ready { ms: (now() - begun).as_millis() as u64, summary: ready });
                Ok(node)
            }
            Err(e) => {
                node.stop().await;
                Err(e)
            }
        }
    }

    async fn start_services(
        &self,
        config: Config,
        paths: Paths,
        identity: Identity,
        certificate: Arc<LiveCertificate>,
        reporter: &Reporter,
    ) -> Result<report::Summary> {
        let store = Store::new(self.coordinator.kv(), Arc::new(photon_api::registry()));
        let step = reporter.step("iam");
        let admin = identity.admin_profile(&config, &paths)?;
        iam::bootstrap::first_admin(&store, &admin.password).await?;
        let lease = Lease::start(store.kv().clone(), "controllers", config.node.clone(), &self.tasks);
        let manager = Manager::new(store.clone(), lease);
        let view = manager.view();
        let gate = Gate::new(Arc::new(Iam::new(view.clone())));
        let login = Login::new(store.clone(), identity.tokens.clone());
        iam::audit::trim(store.clone(), &self.tasks);
        step.done();

        let step = reporter.step("flaredb");
        let flaredb = FlareStore::open(&paths, &config.node, store.kv(), &gate, &self.tasks).await?;
        let flaredb = self.flaredb.get_or_init(|| Arc::new(flaredb)).clone();
        step.done();

        let networking = match config.networking {
            Networking::Auto if is_root() => "host",
            Networking::Auto | Networking::User => "user",
            Networking::Host => "host",
        };
        let mut manager = manager;
        let poke = manager.poke();
        let seats = self.coordinator.seats();
        cluster::start(&config, &store, seats.clone(), &self.gossip, &mut manager, &self.tasks).await?;
        let step = reporter.step("prismnet");
        manager.add(prismnet::control::Ipam);
        let plane: Box<dyn DataPlane> = match networking {
            "host" => Box::new(LinuxPlane::new(&config.data_dir.display().to_string())),
            _ => Box::new(UserPlane),
        };
        let net = HostNet::new(config.node.clone(), plane, self.tasks.clone());
        let mut missing = net.missing();
        manager.add(prismnet::agent::Networks(net.clone()));
        manager.add(prismnet::agent::Ports(net));
        step.done();

        let step = reporter.step("flashdns");
        let (dns, note) = dns::start(&config, &self.tasks).await?;
        missing.extend(note);
        manager.add(flashdns::agent::NetworkViews::new(dns.clone()));
        manager.add(flashdns::agent::HostView(dns));
        step.done();

        let step = reporter.step("plasmavmc");
        let agent =
            HostAgent::open(&paths.service("plasmavmc"), config.node.clone(), poke.clone(), &self.tasks)
                .await?;
        let images = Images::new(&agent);
        if let Some(guest) = &config.guest_dir {
            images.ensure_builtin(&store, guest).await?;
        }
        manager.add(plasmavmc::control::VmController);
        manager.add(Incarnations { agent: agent.clone(), images: images.clone() });
        manager.add(Disks { agent: agent.clone() });
        manager.add(ImageKeeper(images.clone()));
        report_host(agent.clone(), store.clone(), networking, &self.tasks).await?;
        let forward = Forward {
            view: view.clone(),
            tokens: identity.tokens.clone(),
            authority: identity.authority.cert_pem().to_string(),
            tasks: self.tasks.clone(),
        };
        let console = Arc::new(ConsoleRoute::new(agent.clone(), store.clone(), forward));
        let content = Arc::new(ContentRoute { images, store: store.clone(), poke });
        step.done();

        let step = reporter.step("nightlight");
        let metrics =
            Metrics::open(&paths.service("nightlight"), gate.clone(), view.clone(), &self.tasks).await?;
        step.done();

        let tasks = self.tasks.clone();
        let store_answers = AtomicBool::new(true); // it has just answered
        let shared = Arc::new(Shared {
            config,
            paths,
            identity,
            certificate,
            store,
            coordinator: self.coordinator.urls(),
            flaredb,
            view,
            gate,
            login,
            metrics,
            tasks,
            store_answers,
        });
        manager.start(&self.tasks);
        shared.view.reached(1).await;
        let step = reporter.step("api");
        let (chainfire, joining) = match &self.coordinator {
            Coordinator::Own(c) => (Some(c), cluster::enrol(&shared, seats)?.routes()),
            Coordinator::Foreign { .. } => (None, coordinator::nobody_joins()),
        };
        let mut summary = listeners::start(&shared, chainfire, console, content, joining).await?;
        shared.metrics.scrape(&shared, chainfire.is_some())?;
        summary.notes = missing;
        cluster::serves(&shared.config, &self.gossip)?;
        step.done();
        Ok(summary)
    }

    /// Ends only when this node can't go on: its log or state failed, and going on could lose what was promised.
    pub async fn failed(&self) -> photon_base::Error {
        self.coordinator.failed().await
    }

    /// Stops everything. VMs run on.
    pub async fn stop(self) {
        self.gossip.leave().await;
        self.tasks.shutdown().await;
        if let Some(db) = self.flaredb.get() {
            db.shutdown().await;
        }
        self.coordinator.shutdown().await;
    }
}

/// Stops every VM that runs from `data_dir`. The cloud itself must not run.
pub async fn stop_vms(data_dir: &std::path::Path) -> Result<()> {
    let count = plasmavmc::agent::stop_all(&Paths::new(data_dir).service("plasmavmc")).await?;
    crate::cli::say(&format!("{count} VMs stopped"));
    Ok(())
}
