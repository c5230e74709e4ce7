//! The decision: roles bound in projects and in the cluster.

use async_trait::async_trait;
use photon_api::{BindingSpec, ClusterBindingSpec, Role, UserSpec};
use photon_auth::{Action, Caller, Decision, Identity, Kind, Policy, Proof, Target, Verb};
use photon_reconcile::View;

/// Decides from the view of all objects, so that it goes on deciding while the store is away.
#[derive(Clone)]
pub struct Iam {
    view: View,
}

impl Iam {
    /// Decides from `view`.
    pub fn new(view: View) -> Iam {
        Iam { view }
    }
}

/// Kinds about rights: only admins change them, and outside projects only admins read them.
const RIGHTS: [&str; 4] = ["binding", "cluster-binding", "user", "audit"];
/// Kinds that are the cloud itself: only its admins change them.
const MACHINES: [&str; 3] = ["organization", "host", "node"];
/// Kinds outside projects that every user may read: what one needs to make something.
const CATALOGUE: [&str; 1] = ["image"];

/// The least role that an action needs; none means that no role gives it.
pub fn needed(action: Action) -> Option<Role> {
    let rights = RIGHTS.contains(&action.kind);
    match action.verb {
        Verb::UpdateStatus => None,
        v if v.reads() && action.kind == "binding" => Some(Role::Viewer),
        v if v.reads() => Some(if rights { Role::Admin } else { Role::Viewer }),
        _ if rights || MACHINES.contains(&action.kind) => Some(Role::Admin),
        _ => Some(Role::Editor),
    }
}

/// A role with the name of the binding that gives it.
fn best(found: impl Iterator<Item = (Role, String)>) -> Option<(Role, String)> {
    found.max_by_key(|(r, _)| *r)
}

fn yes(because: impl Into<String>) -> Decision {
    Decision::Allow { because: because.into() }
}

fn no(because: impl Into<String>) -> Decision {
    Decision::Deny { because: because.into() }
}

impl Iam {
    fn user(&self, who: &Identity, action: Action, target: &Target) -> Decision {
        match self.view.one::<UserSpec>(None, &who.name) {
            None => return no(format!("there is no {who}")),
            Some(u) if u.spec.disabled || !u.is_wanted() => return no(format!("{who} is disabled")),
            Some(_) => {}
        }
        let Some(role) = needed(action) else { return no("only the cloud itself does this") };
        if action.verb.reads() && CATALOGUE.contains(&action.kind) {
            return yes("every user may read the catalogue");
        }
        let cluster = self
            .view
            .all::<ClusterBindingSpec>(None)
            .into_iter()
            .filter(|b| b.spec.subject == *who && b.is_wanted());
        let cluster = best(cluster.map(|b| (b.spec.role, format!("cluster-binding {}", b.meta.name))));
        // A project itself is cluster-wide, but belongs to those bound in it.
        let project = match (&target.project, action.kind, &target.name) {
            (Some(p), _, _) => Some(p),
            (None, "project", Some(name)) if action.verb != Verb::Create => Some(name),
            _ => None,
        };
        let bound = project.and_then(|p| {
            let all = self
                .view
                .all::<BindingSpec>(Some(p))
                .into_iter()
                .filter(|b| b.spec.subject == *who && b.is_wanted());
            best(all.map(|b| (b.spec.role, format!("binding {} in project {p}", b.meta.name))))
        });
        // In its own project, changing the project itself is for its admins.
        let needed_in_project =
            if action.kind == "project" && !action.verb.reads() { Role::Admin } else { role };
        match (bound, cluster) {
            (Some((r, by)), _) if r >= needed_in_project => yes(by),
            (_, Some((r, by))) if r >= role => yes(by),
            _ => {
                let name = format!("{role:?}").to_lowercase();
                let place = project.map_or("in the cluster".to_string(), |p| format!("in project {p}"));
                no(format!("it needs the role {name} {place}"))
            }
        }
    }
}

#[async_trait]
impl Policy for Iam {
    async fn decide(&self, caller: &Caller, action: Action, target: &Target) -> Decision {
        let who = &caller.identity;
        match (who.kind, &caller.proof) {
            (Kind::Operator, Proof::Certificate) => yes("the operator of the cluster"),
            (Kind::Service, Proof::Internal | Proof::Certificate) => yes("a service of the cloud"),
            (Kind::User, _) => self.user(who, action, target),
            _ => no(format!("{who} has no rights here")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use photon_kv::MemKv;
    use photon_reconcile::Feed;
    use photon_resource::Store;
    use serde_json::json;
    use std::sync::Arc;

    async fn world() -> Iam {
        let store = Store::new(Arc::new(MemKv::new()), Arc::new(photon_api::registry()));
        for (kind, at, spec) in [
            ("project", "demo", json!({})),
            ("project", "other", json!({})),
            ("user", "root-admin", json!({})),
            ("user", "ed", json!({})),
            ("user", "vi", json!({})),
            ("user", "pa", json!({})),
            ("user", "off", json!({"disabled": true})),
            ("cluster-binding", "a", json!({"subject": "user/root-admin", "role": "admin"})),
            ("cluster-binding", "o", json!({"subject": "user/off", "role": "admin"})),
            ("cluster-binding", "g", json!({"subject": "user/ghost", "role": "admin"})),
            ("binding", "demo/e", json!({"subject": "user/ed", "role": "editor"})),
            ("binding", "demo/v", json!({"subject": "user/vi", "role": "viewer"})),
            ("binding", "demo/p", json!({"subject": "user/pa", "role": "admin"})),
        ] {
            store.make(kind, at, &spec).await.expect("made");
        }
        let view = View::default();
        let (tx, _rx) = tokio::sync::mpsc::unbounded_channel();
        Feed::new(store, view.clone(), tx).fill().await.expect("fill");
        Iam::new(view)
    }

    /// Every kind and verb, for each sort of caller: the whole matrix, so that no route is forgotten.
    #[tokio::test]
    async fn the_matrix_of_callers_and_actions() {
        let iam = world().await;
        let caller = |s: &str, proof| Caller { identity: s.parse().expect("identity"), proof };
        let token = || Proof::Token("t".into());
        let verbs = [
            Verb::Get,
            Verb::List,
            Verb::Watch,
            Verb::Create,
            Verb::Update,
            Verb::UpdateStatus,
            Verb::Delete,
            Verb::Console,
        ];
        for info in photon_api::registry().kinds() {
            for verb in verbs {
                let action = Action { kind: info.kind, verb };
                let in_project = info.scope == photon_resource::Scope::Project;
                let at = |project: &str| Target {
                    project: in_project.then(|| project.parse().expect("name")),
                    name: Some("x".parse().expect("name")),
                };
                let allowed = async |who: &Caller, project: &str| {
                    matches!(iam.decide(who, action, &at(project)).await, Decision::Allow { .. })
                };
                let status = verb == Verb::UpdateStatus;
                let reads = verb.reads();
                let rights = RIGHTS.contains(&info.kind);
                assert!(allowed(&caller("operator/root", Proof::Certificate), "demo").await);
                assert!(
                    !allowed(&caller("operator/root", token()), "demo").await,
                    "no token makes an operator"
                );
                assert_eq!(allowed(&caller("user/root-admin", token()), "other").await, !status, "{action}");
                for who in ["user/off", "user/ghost", "user/nobody", "host/n1"] {
                    assert!(!allowed(&caller(who, token()), "demo").await, "{who} {action}");
                }
                let catalogue = CATALOGUE.contains(&info.kind) && reads;
                let ed = catalogue || (in_project && !status && (reads || !rights));
                let vi = catalogue || (in_project && reads);
                let pa = catalogue || (in_project && !status);
                assert_eq!(allowed(&caller("user/ed", token()), "demo").await, ed, "editor {action}");
                assert_eq!(allowed(&caller("user/vi", token()), "demo").await, vi, "viewer {action}");
                assert_eq!(allowed(&caller("user/pa", token()), "demo").await, pa, "project admin {action}");
                for who in ["user/ed", "user/vi", "user/pa"] {
                    assert_eq!(
                        allowed(&caller(who, token()), "other").await,
                        catalogue,
                        "{who} elsewhere {action}"
                    );
                }
            }
        }
        let demo = Target { project: None, name: Some("demo".parse().expect("name")) };
        let delete = Action { kind: "project", verb: Verb::Delete };
        let get = Action { kind: "project", verb: Verb::Get };
        for (who, action, expected) in [
            ("user/pa", delete, true),
            ("user/ed", delete, false),
            ("user/vi", get, true),
            ("user/root-admin", delete, true),
        ] {
            let d = iam.decide(&caller(who, token()), action, &demo).await;
            assert_eq!(matches!(d, Decision::Allow { .. }), expected, "{who} {action}");
        }
    }
}
