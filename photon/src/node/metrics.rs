//! NightLight in this cloud: whose samples are asked for, who may, and which parts of the cloud are scraped.
//!
//! The cloud's own samples are one tenant; every project is another, named by `X-Scope-OrgID`, with a store of its own
//! below its identity (a project of the same name that comes later sees nothing of the old one's).

use super::Shared;
use axum::{
    Router,
    extract::{Request, State},
    response::Response,
};
use nightlight::{
    scrape::config::{Config as Scraping, Group, Job},
    wire::{Config, NightLight},
};
use photon_api::{NodeSpec, ProjectSpec};
use photon_auth::{Action, Caller, Gate, Identity, Leaf, LiveCertificate, Target, Verb, live_client_config};
use photon_base::{Code, Error, Name, Result, Uid};
use photon_reconcile::View;
use photon_resource::http::problem;
use photon_rt::{
    task::Tasks,
    time::{Duration, sleep, wall},
};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::Mutex;
use tower::ServiceExt;

/// Paths that change something; all others read.
const CHANGES: [&str; 5] = ["/api/v1/write", "/api/v1/otlp/", "/v1/metrics", "/opentelemetry.proto.", "/-/"];

/// Most projects whose samples are open here.
const PROJECTS_MAX: usize = 1000;
/// Between two questions to a part of the cloud.
const SCRAPE_INTERVAL_MS: u64 = 15_000;
/// Life of the certificate that targets are shown; it is renewed at half of it.
const CERTIFICATE_VALID: Duration = Duration::from_secs(7 * 86_400);
const CERTIFICATE_LOOK: Duration = Duration::from_secs(60);

/// All tenants of this node.
pub struct Metrics {
    dir: PathBuf,
    /// Or why they are not open: everything else on this node goes on without them.
    cloud: std::result::Result<NightLight, String>,
    projects: Mutex<BTreeMap<Uid, NightLight>>,
    gate: Gate,
    view: View,
    tasks: Tasks,
}

impl Metrics {
    /// Opens the cloud's own samples.
    pub async fn open(dir: &Path, gate: Gate, view: View, tasks: &Tasks) -> Result<Arc<Self>> {
        photon_rt::fs::private_dir(dir)?;
        let cloud = NightLight::open(&dir.join("cloud"), Config::default(), tasks).await;
        let cloud = cloud.map_err(|e| {
            tracing::error!(error = %e, "the cloud's metrics are not stored");
            e.to_string()
        });
        let projects = Mutex::default();
        Ok(Arc::new(Metrics { dir: dir.to_path_buf(), cloud, projects, gate, view, tasks: tasks.clone() }))
    }

    /// Why the cloud's own samples are not stored, if they are not; and how many targets are asked.
    pub fn health(&self) -> (Option<String>, usize) {
        match &self.cloud {
            Ok(cloud) => (cloud.scraper().failed(), cloud.scraper().targets()),
            Err(why) => (Some(why.clone()), 0),
        }
    }

    /// Prometheus' paths, for those who may.
    pub fn routes(self: Arc<Self>) -> Router {
        Router::new().fallback(serve).with_state(self)
    }

    /// Whose samples a request means, after it was asked whether the caller may.
    async fn tenant(&self, request: &mut Request) -> Result<NightLight> {
        let caller = request.extensions().get::<Caller>().cloned();
        let caller = caller.ok_or_else(|| {
            Error::new(Code::Unauthenticated, "metrics need an identity").hint("photon login")
        })?;
        let named = request.headers_mut().remove("x-scope-orgid");
        let project: Option<Name> = match &named {
            None => None,
            Some(v) => {
                let text = v.to_str().unwrap_or_default();
                Some(
                    text.parse()
                        .map_err(|e| Error::invalid("X-Scope-OrgID", "is no project's name").why(e))?,
                )
            }
        };
        let path = request.uri().path();
        let changes = CHANGES.iter().any(|p| path.starts_with(p));
        let verb = if changes { Verb::Update } else { Verb::Get };
        let target = Target { project: project.clone(), name: None };
        let allowed = self.gate.check(&caller, Action { kind: "metrics", verb }, target).await;
        allowed.map_err(|e| match project {
            None => {
                e.hint("for those of a project: X-Scope-OrgID: PROJECT, or photon metrics --project PROJECT")
            }
            Some(_) => e,
        })?;
        match project {
            None => self.cloud.clone().map_err(|why| {
                Error::unavailable("the cloud's metrics are not open on this node").why(why).hint(format!(
                    "put {} back, or move it away, and start the node again",
                    self.dir.join("cloud").display()
                ))
            }),
            Some(name) => self.project(&name).await,
        }
    }

    async fn project(&self, name: &Name) -> Result<NightLight> {
        let found = self.view.one::<ProjectSpec>(None, name);
        let id = found.ok_or_else(|| Error::not_found(format!("project {name}")))?.meta.id;
        let mut open = self.projects.lock().await;
        if let Some(n) = open.get(&id) {
            return Ok(n.clone());
        }
        if open.len() >= PROJECTS_MAX {
            return Err(Error::unavailable("too many projects keep samples on this node")
                .why(format!("at most {PROJECTS_MAX} are open, each until this node starts again")));
        }
        let dir = self.dir.join("projects");
        photon_rt::fs::private_dir(&dir)?;
        let night = NightLight::open(&dir.join(id.to_string()), Config::default(), &self.tasks).await?;
        open.insert(id, night.clone());
        Ok(night)
    }

    /// Asks every node of the cloud, and its store where it is the cloud's own.
    pub fn scrape(&self, s: &Arc<Shared>, own_store: bool) -> Result<()> {
        let Ok(cloud) = &self.cloud else { return Ok(()) };
        let issue = {
            let s = s.clone();
            move || {
                let (dns, addresses) = (Vec::new(), Vec::new());
                let identity = Identity::service("nightlight");
                let leaf = Leaf { identity, dns, addresses, valid: CERTIFICATE_VALID };
                s.identity.authority.issue(&leaf, wall())
            }
        };
        let certificate = LiveCertificate::new(&issue()?)?;
        let trust =
            live_client_config(s.identity.authority.cert_pem(), Some(certificate.clone()), &["http/1.1"])?;
        s.tasks.spawn("scrape-certificate", async move {
            let mut issued = wall();
            loop {
                sleep(CERTIFICATE_LOOK).await;
                let now = wall();
                if now < issued.plus(CERTIFICATE_VALID / 2) && now.plus(CERTIFICATE_LOOK) >= issued {
                    continue;
                }
                match issue().and_then(|pair| certificate.replace(&pair)) {
                    Ok(()) => issued = now,
                    Err(e) => tracing::error!(error = %e, "the certificate for scraping cannot be renewed"),
                }
            }
        });
        let mut jobs = Vec::new();
        let front = crate::services::FRONT.number;
        for (name, port) in [("photon", front), ("chainfire", 2379)] {
            if name == "chainfire" && !own_store {
                continue;
            }
            let (view, me) = (self.view.clone(), s.config.node.clone());
            let mine = s.config.endpoint()?;
            let provider = Arc::new(move || groups(&view, &me, &mine, front, port));
            let job = Job::provided(name, SCRAPE_INTERVAL_MS, trust.clone(), provider);
            let job = job.map_err(|e| Error::internal("a job of our own is wrong").why(e))?;
            jobs.push(Arc::new(job));
        }
        cloud.scraper().apply(Scraping { jobs, ..Scraping::default() });
        Ok(())
    }
}

/// Every node that is known, this one first: it is there before its record is.
fn groups(view: &View, me: &Name, mine: &str, front: u16, port: u16) -> Vec<Group> {
    let others = view.all::<NodeSpec>(None).into_iter();
    let others = others.filter(|n| n.meta.name != *me && n.is_wanted() && !n.status.endpoint.is_empty());
    std::iter::once((me.to_string(), mine.to_string()))
        .chain(others.map(|n| (n.meta.name.to_string(), n.status.endpoint)))
        .filter_map(|(node, endpoint)| {
            let address = endpoint.strip_prefix("https://")?.trim_end_matches('/');
            let (host, door) = address.rsplit_once(':')?;
            // All ports of a node are moved by the same number.
            let port = u32::from(door.parse::<u16>().ok()?) + u32::from(port);
            let port = u16::try_from(port.checked_sub(u32::from(front))?).ok()?;
            let labels = [("node".to_string(), node)].into();
            Some(Group { targets: vec![format!("{host}:{port}")], labels })
        })
        .collect()
}

async fn serve(State(m): State<Arc<Metrics>>, mut request: Request) -> Response {
    match m.tenant(&mut request).await {
        Ok(night) => match night.router().oneshot(request).await {
            Ok(answer) => answer,
            Err(never) => match never {},
        },
        Err(e) => problem(&e),
    }
}
