//! IAM: who exists, who may do what, and who did.
//!
//! Rooms: [`policy`] decides (pure, over the view of all objects), [`login`] turns a password into a
//! short-lived token, [`bootstrap`] makes the organisation and the first admin, [`audit`] shows and
//! trims the audit trail. Port 8080. State: the kinds of `photon-api`'s `iam` module, password hashes below
//! `/photon.internal/iam/password/`, the token key in the data folder.
//!
//! Invariants: rights are looked up at each call, never carried in a token; a user that is disabled or
//! gone can do nothing from the moment the view knows; unknown means no.

pub mod audit;
pub mod bootstrap;
pub mod login;
pub mod policy;

pub use policy::Iam;
