//! `photon login`: credentials for a cloud elsewhere.

use super::output;
use photon_base::{Error, Result};
use photon_client::{Client, Credentials, Profile};
use serde_json::Value;
use std::{io::BufRead, net::IpAddr, path::PathBuf};

/// Flags of `login`.
#[derive(clap::Args)]
pub struct LoginArgs {
    /// Front door, as in https://10.0.0.1:8443; or several, with commas between. Those of the other nodes are kept
    /// too, if the user may see them: when one does not answer, the next is asked.
    #[arg(long, value_name = "URL[,URL…]")]
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
    let endpoint = doors(args.endpoint, client.get("/v1/nodes").await.ok().as_ref());
    Profile { endpoint, ca, user: args.user, password }.save(&args.save)?;
    output::line(&format!("logged in; use it: photon --profile {} …", args.save.display()));
    Ok(())
}

/// The front doors given, then those of all nodes that others can reach.
fn doors(given: String, nodes: Option<&Value>) -> String {
    let mut all: Vec<String> = given.split(',').map(|d| d.trim().trim_end_matches('/').to_string()).collect();
    let nodes = nodes.and_then(|n| n["items"].as_array()).into_iter().flatten();
    for door in nodes.filter_map(|n| n["status"]["endpoint"].as_str()) {
        let host = door.parse::<http::Uri>().ok().and_then(|u| u.host().map(ToString::to_string));
        let address = host.and_then(|h| h.trim_matches(['[', ']']).parse::<IpAddr>().ok());
        let reached = address.is_some_and(|a| !a.is_loopback() && !a.is_unspecified());
        if reached && !all.iter().any(|d| d == door) {
            all.push(door.to_string());
        }
    }
    all.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn other_nodes_doors_are_kept_if_they_can_be_reached() {
        let node = |door: &str| json!({ "status": { "endpoint": door } });
        let list = json!({ "items": [
            node("https://10.0.0.1:8443"), node("https://10.0.0.2:8443"), node("https://127.0.0.1:8443"),
            node("https://[fd00::1]:8443"), node(""), json!({}),
        ]});
        let given = || "https://10.0.0.1:8443/".to_string();
        let all = "https://10.0.0.1:8443,https://10.0.0.2:8443,https://[fd00::1]:8443";
        assert_eq!(doors(given(), Some(&list)), all);
        assert_eq!(doors(given(), None), "https://10.0.0.1:8443");
    }
}
