//! From "who wants what" to a value that proves permission.

use crate::Caller;
use async_trait::async_trait;
use photon_base::{Code, Error, Name, Result};
use std::{fmt, sync::Arc};

/// What can be done to a resource. Subresources with a right of their own have a verb of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// Read one.
    Get,
    /// Read many.
    List,
    /// Follow changes.
    Watch,
    /// Make.
    Create,
    /// Change what is wanted.
    Update,
    /// Change what is so: reconcilers and agents only.
    UpdateStatus,
    /// Remove.
    Delete,
    /// Attach to a console.
    Console,
}

impl Verb {
    /// The verb as it stands in an action's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::UpdateStatus => "update-status",
            Verb::Delete => "delete",
            Verb::Console => "console",
        }
    }

    /// True when the verb only reads.
    pub fn reads(self) -> bool {
        matches!(self, Verb::Get | Verb::List | Verb::Watch)
    }
}

/// A verb on a kind: `vm.create`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Action {
    /// Kind of resource, a literal of the registry.
    pub kind: &'static str,
    /// What to do.
    pub verb: Verb,
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.kind, self.verb.as_str())
    }
}

/// On what.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// Project, none for cluster-wide kinds.
    pub project: Option<Name>,
    /// Name of the object, none for lists.
    pub name: Option<Name>,
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.project, &self.name) {
            (Some(p), Some(n)) => write!(f, "{p}/{n}"),
            (Some(p), None) => write!(f, "project {p}"),
            (None, Some(n)) => write!(f, "{n}"),
            (None, None) => f.write_str("the cluster"),
        }
    }
}

/// A policy's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Yes, because of this binding or rule.
    Allow {
        /// What granted it.
        because: String,
    },
    /// No.
    Deny {
        /// What would have been needed.
        because: String,
    },
}

/// Who decides. Implemented by IAM.
#[async_trait]
pub trait Policy: Send + Sync + 'static {
    /// Decides; must answer `Deny` to everything that it does not know.
    async fn decide(&self, caller: &Caller, action: Action, target: &Target) -> Decision;
}

/// Proof that a policy allowed one caller one action on one target. Only [`Gate::check`] makes it.
#[derive(Clone)]
pub struct Authorized {
    caller: Caller,
    action: Action,
    target: Target,
    because: String,
    gate: Gate,
}

impl fmt::Debug for Authorized {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} may {} on {}", self.caller.identity, self.action, self.target)
    }
}

impl Authorized {
    /// Who.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
    /// What.
    pub fn action(&self) -> Action {
        self.action
    }
    /// On what.
    pub fn target(&self) -> &Target {
        &self.target
    }
    /// The binding or rule that granted it.
    pub fn because(&self) -> &str {
        &self.because
    }

    /// Asks again. What goes on for long (watches, consoles) must, before anything more is told or done:
    /// rights end at once, not with the connection.
    pub async fn still(&self) -> Result<()> {
        self.gate.check(&self.caller, self.action, self.target.clone()).await.map(|_| ())
    }
}

/// The one place where permission is decided.
#[derive(Clone)]
pub struct Gate(Arc<dyn Policy>);

impl Gate {
    /// A gate that asks `policy`.
    pub fn new(policy: Arc<dyn Policy>) -> Gate {
        Gate(policy)
    }

    /// Decides; an error tells who may not do what and what would be needed.
    pub async fn check(&self, caller: &Caller, action: Action, target: Target) -> Result<Authorized> {
        match self.0.decide(caller, action, &target).await {
            Decision::Allow { because } => {
                tracing::debug!(caller = %caller.identity, %action, %target, because, "allowed");
                Ok(Authorized { caller: caller.clone(), action, target, because, gate: self.clone() })
            }
            Decision::Deny { because } => {
                tracing::info!(caller = %caller.identity, %action, %target, because, "denied");
                Err(Error::new(Code::Denied, format!("{} may not {action} on {target}", caller.identity))
                    .why(because))
            }
        }
    }
}
