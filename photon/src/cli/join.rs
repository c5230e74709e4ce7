//! `photon join`, and what a cloud's admin does about nodes: `photon node token`.

use super::{Format, Global, KeepToken, daemon, output};
use crate::{
    config::{Config, Settings},
    node::{Paths, adopt, facts, read_cluster},
};
use clap::{Arg, ArgMatches, Command};
use http::Method;
use nodes::{join::Introduction, token::JoinToken};
use photon_base::{Code, Error, Result};
use photon_client::Client;
use serde_json::json;
use std::path::{Path, PathBuf};

/// `photon join …`.
#[derive(clap::Args)]
pub struct JoinArgs {
    /// A node of the cloud: its front door, or just its address.
    #[arg(value_name = "ADDRESS")]
    address: String,
    /// The join token.
    #[arg(long, env = "PHOTON_JOIN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// File with the join token; `-` reads standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    #[command(flatten)]
    settings: Box<Settings>,
    /// Go to the background; returns when the node is ready.
    #[arg(short, long)]
    detach: bool,
}

impl JoinArgs {
    fn token(&self) -> Result<JoinToken> {
        let text = match (&self.token, &self.token_file) {
            (Some(t), _) => t.clone(),
            (None, Some(f)) if f.as_os_str() == "-" => {
                let mut line = String::new();
                std::io::stdin()
                    .read_line(&mut line)
                    .map_err(|e| Error::invalid("token-file", "standard input can't be read").why(e))?;
                line
            }
            (None, Some(f)) => photon_rt::fs::read_text(f, 4096)?,
            (None, None) => {
                return Err(Error::invalid("token", "is missing")
                    .hint("make one on a node of the cloud: photon node token"));
            }
        };
        JoinToken::parse(&text)
    }
}

/// `https://HOST:8443` of what people write.
fn front_door(address: &str) -> Result<String> {
    let bare = address.trim_end_matches('/').trim_start_matches("https://");
    let authority: http::uri::Authority = match bare.parse::<std::net::IpAddr>() {
        Ok(std::net::IpAddr::V6(v6)) => format!("[{v6}]").parse(),
        _ => bare.parse(),
    }
    .map_err(|e| Error::invalid("address", format!("{address:?} is not a host")).why(e))?;
    let port = authority.port_u16().unwrap_or(crate::services::FRONT.number);
    Ok(format!("https://{}:{port}", authority.host()))
}

/// Drawn once a machine: who asks again with it is the same machine.
fn nonce(dir: &Path) -> Result<String> {
    let path = dir.join("join.nonce");
    if path.exists() {
        return photon_rt::fs::read_text(&path, 256);
    }
    let nonce = photon_rt::entropy::uid().to_string();
    photon_rt::fs::write_atomic(&path, nonce.as_bytes(), 0o600)?;
    Ok(nonce)
}

/// Makes this machine a node of a cloud, and starts it.
pub async fn join(global: &Global, args: JoinArgs) -> Result<()> {
    let dir = global.data_dir();
    let paths = Paths::new(&dir);
    if paths.cluster().exists() {
        let joined = read_cluster(&paths)?.joined.is_some();
        let what = if joined { "is a node already" } else { "has a cloud of its own" };
        return Err(Error::new(Code::Exists, format!("this machine {what}"))
            .why(format!("{} holds its state", dir.display()))
            .hint("start it: photon up; or join with another --data-dir"));
    }
    photon_rt::fs::private_dir(&dir)?;
    let (token, endpoint) = (args.token()?, front_door(&args.address)?);
    let met = nodes::join::meet(&endpoint, &token).await?;
    let mut settings = *args.settings;
    // Where the cloud is reached is where the cloud reaches us.
    settings.listen.get_or_insert(met.local);
    let config = Config::load(dir.clone(), None, settings.clone())?;
    let f = facts(&config)?;
    settings.node = Some(config.node.clone());
    let me = Introduction {
        name: f.name,
        endpoint: f.endpoint,
        peer_url: f.peer_url,
        gossip: f.gossip,
        version: f.version,
        nonce: nonce(&dir)?,
    };
    let admission = nodes::join::join(&endpoint, &met.authority, &token, me).await?;
    settings.save(&dir)?;
    adopt(&paths, &admission)?;
    if global.output == Format::Table {
        output::line(&format!("  ✓ joined      node {} of the cloud at {endpoint}", config.node));
    }
    if args.detach {
        let words = ["--data-dir".into(), dir.into_os_string(), "up".into()];
        return daemon::detached(global, &config, words.into()).await;
    }
    daemon::up(global, Settings::default(), None, false).await
}

/// `photon node token`.
pub fn token_command() -> Command {
    Command::new("token")
        .about("Make a token that lets one machine join")
        .after_help("Example: photon node token --ttl 600")
        .arg(
            Arg::new("ttl")
                .long("ttl")
                .help("How long it is good, in seconds")
                .value_name("SECONDS")
                .default_value("3600")
                .value_parser(clap::value_parser!(u64)),
        )
}

/// Makes a token and shows the command that uses it.
pub async fn token(global: &Global, client: &Client, m: &ArgMatches) -> Result<()> {
    let ttl = m.get_one::<u64>("ttl").copied().unwrap_or(3600);
    let answer = client.call(Method::POST, "/v1/join-tokens", Some(&json!({ "ttlSeconds": ttl }))).await?;
    client.keep_token(global).await;
    let (token, endpoint) = (answer["token"].as_str().unwrap_or_default(), client.endpoint());
    match global.output {
        Format::Name => output::line(token),
        Format::Table => {
            output::line(&format!("photon join {endpoint} --token {token}"));
            let host = front_door(endpoint)?.parse::<http::Uri>().ok();
            let host = host.as_ref().and_then(|u| u.host()).and_then(|h| h.parse::<std::net::IpAddr>().ok());
            if host.is_some_and(|h| h.is_loopback()) {
                eprintln!(
                    "note: {endpoint} is reached from this machine only; for others: photon down; photon up --listen ADDRESS"
                );
            }
        }
        f => output::value(f, &answer),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_be_short() {
        for (given, door) in [
            ("10.0.0.1", "https://10.0.0.1:8443"),
            ("https://10.0.0.1:9443/", "https://10.0.0.1:9443"),
            ("cloud.example", "https://cloud.example:8443"),
            ("fd00::1", "https://[fd00::1]:8443"),
            ("[fd00::1]:1", "https://[fd00::1]:1"),
        ] {
            assert_eq!(front_door(given).expect(given), door);
        }
        assert!(front_door("a b").is_err() && front_door("").is_err());
    }
}
