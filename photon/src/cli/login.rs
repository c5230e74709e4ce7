//! `photon login`: credentials for a cloud elsewhere.

use super::output;
use photon_base::{Error, Result};
use photon_client::{Client, Credentials, Profile};
use std::{io::BufRead, path::PathBuf};

/// Flags of `login`.
#[derive(clap::Args)]
pub struct LoginArgs {
    /// Front door, as in https://10.0.0.1:8443.
    #[arg(long, value_name = "URL")]
    endpoint: String,
    /// Certificate of the cloud's authority (creds/ca.crt there).
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,
    /// User.
    #[arg(long)]
    user: String,
    /// Where to keep the credentials; use them with --profile.
    #[arg(long, value_name = "FILE")]
    save: PathBuf,
}

/// Reads the password from standard input, tries it, and saves the profile.
pub async fn login(args: LoginArgs) -> Result<()> {
    eprint!("Password of {}: ", args.user);
    let mut text = String::new();
    std::io::stdin()
        .lock()
        .read_line(&mut text)
        .map_err(|e| Error::internal("cannot read the password").why(e))?;
    let password = text.trim_end_matches(['\r', '\n']).to_string();
    let ca = photon_rt::fs::read_text(&args.ca, 256 << 10)?;
    let credentials = Credentials::Password { user: args.user.clone(), password: password.clone() };
    let client = Client::new(&args.endpoint, &ca, credentials)?;
    client.get("/v1").await?;
    Profile { endpoint: args.endpoint, ca, user: args.user, password }.save(&args.save)?;
    output::line(&format!("logged in; use it: photon --profile {} …", args.save.display()));
    Ok(())
}
