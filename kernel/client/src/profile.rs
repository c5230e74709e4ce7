//! Where a cloud is and how to log in there: one JSON file, mode 0600.

use photon_base::{Code, Error, Result};
use photon_rt::fs;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// How to reach a cloud. `up` writes the admin's; `photon login` writes others.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Profile {
    /// Front door, as in `https://127.0.0.1:8443`; or several, with commas between.
    pub endpoint: String,
    /// Certificate of the cluster's authority, PEM.
    pub ca: String,
    /// User.
    pub user: String,
    /// Password.
    pub password: String,
}

impl std::fmt::Debug for Profile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Profile")
            .field("endpoint", &self.endpoint)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl Profile {
    /// Reads the profile at `path`.
    pub fn load(path: &Path) -> Result<Profile> {
        let text = fs::read_text(path, 256 << 10).map_err(|e| match e.code {
            Code::NotFound => Error::new(Code::Unavailable, "no cloud is known here")
                .why(format!("{} does not exist", path.display()))
                .hint("start one: photon up; or say where it is: --data-dir DIR, or photon login"),
            _ => e,
        })?;
        serde_json::from_str(&text)
            .map_err(|e| Error::new(Code::Invalid, format!("{} is no profile", path.display())).why(e))
    }

    /// The first front door.
    pub fn door(&self) -> &str {
        self.endpoint.split(',').next().unwrap_or_default()
    }

    /// Writes it, readable by the owner only.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::internal("a profile can't be written").why(e))?;
        fs::write_atomic(path, text.as_bytes(), 0o600)
    }
}
