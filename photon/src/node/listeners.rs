//! All ports of a node.

use super::{Shared, identity, report::Summary};
use crate::services::{FRONT, SERVICES, Transport};
use axum::{
    Router,
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use chainfire::{ChainFire, Scope};
use iam::login::PasswordRoute;
use photon_auth::{Action, Caller, Gate, Kind, LiveCertificate, Proof, Target, Verb, server_config};
use photon_base::{Code, Error, Result, Timestamp};
use photon_resource::http::{Api, problem};
use photon_rt::time::wall;
use photon_serve::{health, listen::Listener, metrics};
use plasmavmc::agent::{ConsoleRoute, ContentRoute};
use serde_json::{Map, json};
use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

/// Binds and starts every port.
pub async fn start(
    s: &Arc<Shared>,
    chainfire: Option<&ChainFire>,
    console: Arc<ConsoleRoute>,
    content: Arc<ContentRoute>,
    joining: Router,
) -> Result<Summary> {
    let metrics = s.metrics.clone().routes();
    renew(s, s.certificate.clone());
    pulse(s);
    let tls = server_config(s.certificate.clone(), s.identity.authority.cert_pem())?;
    let api = Api::new(s.store.clone(), s.gate.clone())
        .connect("user", "password", Verb::Update, Arc::new(PasswordRoute(s.login.clone())))
        .connect("vm", "console", Verb::Console, console)
        .connect("image", "content", Verb::Update, content);
    let common = |router: Router| {
        router.merge(guarded_metrics(s.gate.clone())).route("/version", axum::routing::get(version))
    };
    let iam = s.login.clone().routes().merge(iam::audit::routes(s.store.clone(), s.gate.clone()));
    let front = api.clone().router().merge(iam.clone()).merge(joining).nest("/prometheus", metrics.clone());
    let front = common(front.merge(health::routes(whole(s))));
    let mut ports: Vec<(&'static str, u16, Router)> = vec![("front", FRONT.number, front)];
    for service in &SERVICES {
        for port in service.ports.iter().filter(|p| p.transport == Transport::Tls) {
            let router = match service.name {
                "chainfire" => {
                    let Some(chainfire) = chainfire else { continue };
                    chainfire.router().layer(axum::middleware::from_fn_with_state(s.gate.clone(), scope))
                }
                "flaredb" => s.flaredb.router(common(health::routes(one(s, "flaredb")))),
                "iam" => common(
                    api.clone().only("iam").router().merge(iam.clone()).merge(health::routes(one(s, "iam"))),
                ),
                "nightlight" => common(metrics.clone().merge(health::routes(one(s, "nightlight")))),
                name => common(api.clone().only(name).router().merge(health::routes(one(s, name)))),
            };
            ports.push((service.name, port.number, router));
        }
    }
    for (name, number, router) in ports {
        let addr = SocketAddr::new(s.config.listen, s.config.port(number)?);
        let socket = photon_rt::net::listen(addr).await?;
        let listener = Listener {
            name,
            socket,
            tls: Some(tls.clone()),
            tokens: Some(s.identity.tokens.clone()),
            router,
            direct: match name {
                "chainfire" => chainfire.map(|c| c.direct(operators)),
                "flaredb" => s.flaredb.direct(),
                _ => None,
            },
            lenient_authority: name == "chainfire",
        };
        listener.start(&s.tasks);
    }
    let profile = photon_client::Profile::load(&s.paths.creds("admin.json"))?;
    Ok(Summary {
        endpoint: profile.endpoint,
        data_dir: s.config.data_dir.display().to_string(),
        credentials: s.paths.creds("admin.json").display().to_string(),
        notes: Vec::new(),
    })
}

/// Exchanges the server certificate at half its life. Asks the clock on the wall: a machine that slept
/// does not count the time. What fails is tried again soon.
fn renew(s: &Arc<Shared>, live: Arc<LiveCertificate>) {
    let (config, paths) = (s.config.clone(), s.paths.clone());
    s.tasks.spawn("certificate-renewal", async move {
        let mut issued = wall();
        loop {
            photon_rt::time::sleep(RENEWAL_LOOK).await;
            if !renewal_due(issued, wall()) {
                continue;
            }
            let fresh = identity::Identity::open(&config, &paths).and_then(|i| live.replace(&i.server));
            match fresh {
                Ok(()) => {
                    issued = wall();
                    tracing::info!("server certificate renewed");
                }
                Err(e) => {
                    tracing::error!(error = %e, "the server certificate cannot be renewed; trying again");
                }
            }
        }
    });
}

/// Between two looks at the certificate's age.
const RENEWAL_LOOK: photon_rt::time::Duration = photon_rt::time::Duration::from_secs(60);

/// True at half the life of a certificate, and when the clock now stands well before its issue: then it
/// is not valid yet.
fn renewal_due(issued: Timestamp, now: Timestamp) -> bool {
    now >= issued.plus(identity::SERVER_VALID / 2) || now.plus(RENEWAL_LOOK) < issued
}

/// Those who certainly see everything; the others take the way through [`scope`].
fn operators(caller: Option<&Caller>) -> Option<(Scope, bool)> {
    let operator = |c: &&Caller| c.identity.kind == Kind::Operator && c.proof == Proof::Certificate;
    caller.filter(operator).map(|_| (Scope::Operator, true))
}

/// Which keys an etcd client may see: all for the operator; those outside the reserved prefix for users
/// whose role reaches the whole cluster, since etcd's keys belong to no project. Others get no answer.
async fn scope(State(gate): State<Gate>, mut request: Request, next: Next) -> Response {
    if let Some(caller) = request.extensions().get::<Caller>().cloned() {
        let operator = operators(Some(&caller)).is_some();
        let action = Action { kind: "etcd", verb: Verb::Update };
        let user =
            !operator && gate.check(&caller, action, Target { project: None, name: None }).await.is_ok();
        if operator || user {
            request.extensions_mut().insert(if operator { Scope::Operator } else { Scope::Tenant });
        }
    }
    next.run(request).await
}

async fn version() -> axum::Json<serde_json::Value> {
    axum::Json(json!({ "name": "photon", "version": env!("CARGO_PKG_VERSION") }))
}

/// Metrics tell of every tenant: they are for those who may read the whole cluster.
fn guarded_metrics(gate: Gate) -> Router {
    let guard = async |State(gate): State<Gate>, request: Request, next: Next| -> Response {
        let Some(caller) = request.extensions().get::<Caller>().cloned() else {
            let e = Error::new(Code::Unauthenticated, "metrics need an identity").hint("photon login");
            return problem(&e);
        };
        let action = Action { kind: "metrics", verb: Verb::Get };
        match gate.check(&caller, action, Target { project: None, name: None }).await {
            Ok(_) => next.run(request).await,
            Err(e) => problem(&e),
        }
    };
    metrics::routes().layer(axum::middleware::from_fn_with_state(gate, guard))
}

/// Whether one service is well by itself, and what it tells.
fn own(s: &Arc<Shared>, service: &str) -> (bool, Map<String, serde_json::Value>) {
    let view = &s.view;
    let count = |kind: &str, f: &dyn Fn(&photon_resource::Raw) -> bool| {
        view.list(&format!("{}{kind}/", photon_resource::RESOURCE_PREFIX))
            .iter()
            .filter(|(_, o)| f(o))
            .count()
    };
    let store = s.store_answers.load(Ordering::Relaxed);
    let mut m = Map::new();
    let healthy = match service {
        "chainfire" => {
            m.extend(s.coordinator.iter().map(|urls| ("coordinator".into(), urls.clone().into())));
            store
        }
        "iam" => {
            m.insert("database".into(), if store { "connected" } else { "away" }.into());
            m.insert("version".into(), env!("CARGO_PKG_VERSION").into());
            view.revision() > 0
        }
        "flaredb" => {
            let (well, fields) = s.flaredb.health(store);
            m = fields;
            well
        }
        "plasmavmc" => {
            m.insert("vms_running".into(), count("vm", &|o| o.status["phase"] == "running").into());
            view.revision() > 0
        }
        "nightlight" => {
            let (failed, targets) = s.metrics.health();
            m.insert("targets".into(), targets.into());
            let well = failed.is_none();
            m.extend(failed.map(|e| ("error".into(), e.into())));
            well
        }
        "prismnet" => {
            m.insert("networks".into(), count("network", &|_| true).into());
            view.revision() > 0
        }
        _ => true,
    };
    (healthy, m)
}

/// A service's report: it is healthy when it is well itself and what it needs is healthy.
fn one(s: &Arc<Shared>, service: &'static str) -> health::Report {
    let s = s.clone();
    Arc::new(move || {
        let (well, mut fields) = own(&s, service);
        let away: Vec<&str> = SERVICES
            .iter()
            .filter(|x| x.name == service)
            .flat_map(|x| x.needs)
            .copied()
            .filter(|n| !own(&s, n).0)
            .collect();
        if !away.is_empty() {
            fields.insert("waiting_for".into(), away.join(",").into());
        }
        (well && away.is_empty(), fields)
    })
}

fn whole(s: &Arc<Shared>) -> health::Report {
    let s = s.clone();
    Arc::new(move || {
        let mut services = Map::new();
        let mut all = true;
        for service in &SERVICES {
            let (healthy, fields) = one(&s, service.name)();
            all &= healthy;
            let mut m = Map::new();
            m.insert("status".into(), if healthy { "healthy" } else { "unhealthy" }.into());
            m.extend(fields);
            services.insert(service.name.into(), m.into());
        }
        let mut m = Map::new();
        m.insert("node".into(), s.config.node.to_string().into());
        m.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        m.insert("services".into(), services.into());
        (all, m)
    })
}

/// Asks the store every second whether it answers, for the health reports.
fn pulse(s: &Arc<Shared>) {
    let s = s.clone();
    tell(&s); // whoever reads the metrics first finds it there
    s.tasks.clone().spawn("pulse", async move {
        loop {
            let read = s.store.kv().get(photon_resource::ROOT.as_bytes(), photon_kv::ReadAt::Latest);
            let answered = photon_rt::time::timeout(PULSE_TIME_MAX, "the store", read).await;
            s.store_answers.store(matches!(answered, Ok(Ok(_))), Ordering::Relaxed);
            tell(&s);
            photon_rt::time::sleep(PULSE).await;
        }
    });
}

/// Tells of every service's health among the metrics.
fn tell(s: &Arc<Shared>) {
    for service in &SERVICES {
        let help = "Whether a service of this node is well: 1, else 0.";
        let gauge = metrics::gauge("photon_service_healthy", help, &[("service", service.name)]);
        gauge.set(u64::from(one(s, service.name)().0));
    }
}

/// Between two questions.
const PULSE: photon_rt::time::Duration = photon_rt::time::Duration::from_secs(1);
/// The longest wait for an answer: a busy machine is slow, which is not the same as ill.
const PULSE_TIME_MAX: photon_rt::time::Duration = photon_rt::time::Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use photon_auth::{Decision, Identity, Policy};
    use tower::ServiceExt;

    struct OnlyAlice;

    #[async_trait::async_trait]
    impl Policy for OnlyAlice {
        async fn decide(&self, caller: &Caller, action: Action, _: &Target) -> Decision {
            let because = String::new();
            match caller.identity.name.as_str() {
                "alice" if action.verb.reads() => Decision::Allow { because },
                _ => Decision::Deny { because },
            }
        }
    }

    #[tokio::test]
    async fn metrics_are_for_those_who_may_read_the_cluster() {
        for (who, expected) in [(None, 401), (Some("bob"), 403), (Some("alice"), 200)] {
            let mut r = Request::new(axum::body::Body::empty());
            *r.uri_mut() = "/metrics".parse().expect("uri");
            if let Some(name) = who {
                let identity = Identity::user(name.parse().expect("name"));
                r.extensions_mut().insert(Caller { identity, proof: Proof::Certificate });
            }
            let answer = guarded_metrics(Gate::new(Arc::new(OnlyAlice))).oneshot(r).await.expect("answer");
            assert_eq!(answer.status().as_u16(), expected, "{who:?}");
        }
    }

    #[test]
    fn a_certificate_is_renewed_at_half_its_life_and_after_the_clock_went_back() {
        let issued = Timestamp(1_800_000_000_000);
        let half = issued.plus(identity::SERVER_VALID / 2);
        assert!(!renewal_due(issued, issued) && !renewal_due(issued, Timestamp(half.0 - 1)));
        assert!(renewal_due(issued, half) && renewal_due(issued, Timestamp(issued.0 - 600_000)));
    }
}
