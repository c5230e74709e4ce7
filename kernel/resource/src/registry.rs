//! All kinds of a program, with their types erased.

use crate::{Column, Flag, Reference, Resource, Scope, admit};
use photon_base::{Code, Error, Result};
use serde_json::Value;

/// A kind without its type.
#[derive(Clone)]
pub struct KindInfo {
    /// Singular.
    pub kind: &'static str,
    /// Plural.
    pub plural: &'static str,
    /// Where objects live.
    pub scope: Scope,
    /// Owner of the kind.
    pub service: &'static str,
    /// True when only the cloud itself writes it.
    pub system: bool,
    /// Columns of tables.
    pub columns: &'static [Column],
    /// Extra flags of the command line.
    pub flags: &'static [Flag],
    /// Phases of rest.
    pub settled: &'static [&'static str],
    /// Phases of failure.
    pub failed: &'static [&'static str],
    /// Finalizers of a new object.
    pub finalizers: &'static [&'static str],
    /// JSON Schema of spec.
    pub spec_schema: fn() -> Value,
    /// JSON Schema of status.
    pub status_schema: fn() -> Value,
    /// Checks a spec, fills in defaults, and lists what it names.
    pub admit: fn(spec: Value) -> Result<(Value, Vec<Reference>)>,
    /// Checks a change from an old spec to a new one (both admitted).
    pub admit_update: fn(old: &Value, new: &Value) -> Result<()>,
    /// Checks a status.
    pub admit_status: fn(status: Value) -> Result<Value>,
}

impl KindInfo {
    /// The erased form of `R`.
    pub fn of<R: Resource>() -> KindInfo {
        KindInfo {
            kind: R::KIND,
            plural: R::PLURAL,
            scope: R::SCOPE,
            service: R::SERVICE,
            system: R::SYSTEM,
            columns: R::COLUMNS,
            flags: R::FLAGS,
            settled: R::SETTLED,
            failed: R::FAILED,
            finalizers: R::FINALIZERS,
            spec_schema: admit::schema::<R>,
            status_schema: admit::schema::<R::Status>,
            admit: admit::spec::<R>,
            admit_update: admit::update::<R>,
            admit_status: admit::status::<R>,
        }
    }
}

/// The kinds that a program knows, each once.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: Vec<KindInfo>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Registry {
        Registry::default()
    }

    /// Adds `R`.
    pub fn with<R: Resource>(mut self) -> Registry {
        assert!(
            self.kinds.iter().all(|k| k.kind != R::KIND && k.plural != R::PLURAL),
            "kind {} is declared twice",
            R::KIND
        );
        self.kinds.push(KindInfo::of::<R>());
        self
    }

    /// All kinds, in the order of declaration.
    pub fn kinds(&self) -> &[KindInfo] {
        &self.kinds
    }

    /// The kind of this singular.
    pub fn kind(&self, kind: &str) -> Option<&KindInfo> {
        self.kinds.iter().find(|k| k.kind == kind)
    }

    /// The kind of this plural, with a suggestion when there is none.
    pub fn plural(&self, plural: &str) -> Result<&KindInfo> {
        self.kinds.iter().find(|k| k.plural == plural).ok_or_else(|| {
            let known: Vec<&str> = self.kinds.iter().map(|k| k.plural).collect();
            let shown: String = plural.chars().take(40).collect();
            Error::new(Code::NotFound, format!("there is no kind {shown:?}"))
                .why(format!("the kinds are {}", known.join(", ")))
        })
    }
}
