//! The one error shape that crosses a border of PhotonCloud: wire, command line and log.

use serde::{Deserialize, Serialize};

/// Result with the shared [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Class of an error. Fixes the HTTP status, the exit code of the command line and the
/// `PHnnnn` number; numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// A field has a value that is not allowed. Nothing was changed.
    Invalid,
    /// No identity, or one that does not hold.
    Unauthenticated,
    /// The identity is known and may not do this.
    Denied,
    /// The named thing does not exist.
    NotFound,
    /// A thing of that name exists already.
    Exists,
    /// The record changed since it was read, or is in use.
    Conflict,
    /// A limit or pool is exhausted.
    Exhausted,
    /// The history asked for was compacted away; read again from now.
    Gone,
    /// Not possible on this host or in this version.
    Unsupported,
    /// A needed part does not answer; the same call may succeed later.
    Unavailable,
    /// The time allowed ran out; the outcome may be unknown.
    Timeout,
    /// A defect of ours.
    Internal,
}

impl Code {
    /// All codes, in the order of their numbers.
    pub const ALL: [Code; 12] = [
        Code::Invalid,
        Code::Unauthenticated,
        Code::Denied,
        Code::NotFound,
        Code::Exists,
        Code::Conflict,
        Code::Exhausted,
        Code::Gone,
        Code::Unsupported,
        Code::Unavailable,
        Code::Timeout,
        Code::Internal,
    ];

    /// The stable number printed as `PHnnnn`.
    pub fn number(self) -> u16 {
        1001 + Self::ALL.iter().position(|c| *c == self).map_or(0, |i| i as u16)
    }

    /// HTTP status (RFC 9110, 6585).
    pub fn http_status(self) -> u16 {
        match self {
            Code::Invalid => 400,
            Code::Unauthenticated => 401,
            Code::Denied => 403,
            Code::NotFound => 404,
            Code::Exists | Code::Conflict => 409,
            Code::Exhausted => 429,
            Code::Gone => 410,
            Code::Unsupported => 422,
            Code::Unavailable => 503,
            Code::Timeout => 504,
            Code::Internal => 500,
        }
    }

    /// Exit code of the command line.
    pub fn exit_code(self) -> u8 {
        match self {
            Code::Invalid => 2,
            Code::NotFound => 3,
            Code::Exists | Code::Conflict => 4,
            Code::Unauthenticated | Code::Denied => 5,
            Code::Timeout => 6,
            Code::Unavailable => 7,
            Code::Exhausted | Code::Gone | Code::Unsupported | Code::Internal => 1,
        }
    }
}

/// What went wrong, why, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}", self.line())]
pub struct Error {
    /// Class of the error.
    pub code: Code,
    /// What was not done, in one clause: `vm "a" was not created`.
    pub what: String,
    /// Why, in one clause; empty when `what` says it all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// Path of the offending field, as in `spec.memory`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// What the reader can do, often a command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// True for a conflict with somebody who was faster: the same call, made again, reads what is so by
    /// then. False for a conflict with what the caller expects or with what is there to stay.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub raced: bool,
}

impl Error {
    /// An error of class `code` that says `what` was not done.
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Error { code, what: what.into(), why: String::new(), field: None, hint: None, raced: false }
    }

    /// A value of `field` that is not allowed.
    pub fn invalid(field: impl Into<String>, what: impl Into<String>) -> Self {
        Error { field: Some(field.into()), ..Error::new(Code::Invalid, what) }
    }

    /// `what` does not exist.
    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Error::new(Code::NotFound, format!("{what} does not exist"))
    }

    /// Somebody changed `what` between our reading it and our commit.
    pub fn raced(what: impl std::fmt::Display) -> Self {
        let e = Error::new(Code::Conflict, format!("{what} changed meanwhile"));
        Error { raced: true, ..e.hint("read it again, then change it") }
    }

    /// A defect of ours; the text goes to the log and to the caller.
    pub fn internal(what: impl Into<String>) -> Self {
        Error::new(Code::Internal, what)
    }

    /// A part that does not answer.
    pub fn unavailable(what: impl Into<String>) -> Self {
        Error::new(Code::Unavailable, what)
    }

    /// Adds the reason.
    pub fn why(mut self, why: impl std::fmt::Display) -> Self {
        self.why = why.to_string();
        self
    }

    /// Adds what the reader can do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Puts `prefix.` before the field, if there is one.
    pub fn within(mut self, prefix: &str) -> Self {
        if let Some(f) = &self.field {
            self.field = Some(if f.is_empty() { prefix.to_string() } else { format!("{prefix}.{f}") });
        }
        self
    }

    /// True when the same call may succeed later without a change by the caller.
    pub fn is_retryable(&self) -> bool {
        self.raced || matches!(self.code, Code::Unavailable | Code::Timeout | Code::Exhausted)
    }

    /// The error without its code: `what; why; hint: …`.
    fn line(&self) -> String {
        let mut s = match &self.field {
            Some(f) if !f.is_empty() => format!("{f}: {}", self.what),
            _ => self.what.clone(),
        };
        if !self.why.is_empty() {
            s.push_str("; ");
            s.push_str(&self.why);
        }
        if let Some(h) = &self.hint {
            s.push_str("; hint: ");
            s.push_str(h);
        }
        s
    }

    /// The line for people: `error[PH1001]: what; why; hint: …`.
    pub fn report(&self) -> String {
        format!("error[PH{}]: {}", self.code.number(), self.line())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_names_code_field_reason_and_hint() {
        let e = Error::invalid("memory", "0 is too small").why("a guest needs 32MiB").hint("--memory 128MiB");
        assert_eq!(
            e.within("spec").report(),
            "error[PH1001]: spec.memory: 0 is too small; a guest needs 32MiB; hint: --memory 128MiB"
        );
    }

    #[test]
    fn a_lost_race_is_marked_by_a_field_and_not_by_its_words() {
        let lost = Error::raced("vm \"a\"");
        let same_words = Error { raced: false, ..lost.clone() };
        assert_eq!(lost.report(), same_words.report());
        assert_eq!((lost.is_retryable(), same_words.is_retryable()), (true, false));
        let wire = serde_json::to_string(&same_words).expect("json");
        assert!(!wire.contains("raced"), "{wire}: older readers see what they know");
        assert!(!serde_json::from_str::<Error>(&wire).expect("an older writer's").raced);
        let wire = serde_json::to_string(&lost).expect("json");
        assert_eq!(serde_json::from_str::<Error>(&wire).expect("error"), lost);
    }

    #[test]
    fn numbers_are_distinct_and_stable() {
        assert_eq!(Code::Invalid.number(), 1001);
        assert_eq!(Code::Internal.number(), 1012);
    }
}
