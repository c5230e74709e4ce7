//! Who is calling and may they: identities ([`Identity`], [`Caller`]), the certificate authority
//! ([`Authority`]), short-lived signed tokens ([`TokenKey`]), passwords ([`password`]), and the gate
//! ([`Gate`]) that turns a caller, an action and a target into an [`Authorized`], the only value a
//! handler accepts.
//!
//! Invariants: an [`Authorized`] exists only because a policy said yes; unknown identities, roles and
//! actions mean no; secrets are compared in constant time and never printed. Authentication (proving
//! a name), authorization (deciding) and audit (recording, in `photon-resource`) share no code.

mod authority;
mod gate;
mod identity;
pub mod password;
mod subject;
mod tls;
mod token;

pub use authority::{Authority, CertPair, Leaf};
pub use gate::{Action, Authorized, Decision, Gate, Policy, Target, Verb};
pub use identity::{Caller, Identity, Kind, Proof};
pub use subject::{CommonName, common_name};
pub use tls::{
    LiveCertificate, client_config, fingerprint, identity_of, live_client_config, mutual_config,
    pinned_config, server_config,
};
pub use token::{Claims, TokenKey};
