//! `photon chainfire snapshot`: save, look at and restore whole states; and what helps a member or a cluster
//! that lost its disk (`rejoin`, `recover`).

use super::{Format, Global, output};
use crate::node::Paths;
use chainfire::{
    cluster::Peering,
    snapshot::{self, JsonPieces, Saver, SnapshotStatus},
};
use futures::StreamExt;
use http_body_util::BodyExt;
use photon_auth::CertPair;
use photon_base::{Code, Error, Result};
use photon_client::{Client, Credentials, Profile};
use serde_json::json;
use std::path::PathBuf;

/// `photon chainfire snapshot …`.
#[derive(clap::Subcommand)]
pub enum SnapshotCommand {
    /// Save the whole store to a file, as `etcdctl snapshot save` does.
    ///
    /// Example: photon chainfire snapshot save backup.db
    Save {
        /// The file; an existing one is replaced.
        file: PathBuf,
        /// The store; by default the one of this machine's cloud.
        #[arg(long, env = "ETCDCTL_ENDPOINTS", value_name = "URL")]
        endpoints: Option<String>,
    },
    /// Check a file and show what it holds.
    Status {
        /// The file.
        file: PathBuf,
    },
    /// Make the folder of a store out of a file.
    ///
    /// The store must not run, and the folder must not hold one already. Of a cloud, restore to
    /// DATA-DIR/chainfire before its first `photon up`.
    ///
    /// Example: photon chainfire snapshot restore backup.db --to /var/lib/photon/chainfire
    Restore {
        /// The file.
        file: PathBuf,
        /// The folder to make.
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
}

/// Runs it.
pub async fn snapshot(global: &Global, command: SnapshotCommand) -> Result<()> {
    let status = match command {
        SnapshotCommand::Save { file, endpoints } => save(global, file, endpoints).await?,
        SnapshotCommand::Status { file } => {
            photon_rt::task::blocking(move || snapshot::status(&file)).await?
        }
        SnapshotCommand::Restore { file, to } => {
            photon_rt::task::blocking(move || snapshot::restore(&file, &to)).await?
        }
    };
    show(global, &status);
    Ok(())
}

/// `photon chainfire rejoin`.
pub async fn rejoin(global: &Global, name: &str, peering: &Peering) -> Result<()> {
    let done = chainfire::cluster::rejoin(&global.data_dir(), name, peering).await?;
    let value = json!({
        "before": done.before.map(|b| format!("{b:x}")),
        "member": format!("{:x}", done.member),
        "cluster": format!("{:x}", done.cluster),
        "next": "start it with the flags that it had; it votes when it has caught up",
    });
    let columns = [("BEFORE", "/before"), ("MEMBER", "/member"), ("CLUSTER", "/cluster"), ("NEXT", "/next")];
    tell(global, &columns, value);
    Ok(())
}

/// `photon chainfire recover`.
pub async fn recover(global: &Global, name: String, peer_url: String) -> Result<()> {
    let dir = global.data_dir();
    let done = photon_rt::task::blocking(move || chainfire::recover::recover(&dir, &name, &peer_url)).await?;
    let value = json!({
        "revision": done.revision,
        "keys": done.keys,
        "applied": done.applied,
        "lost": done.log,
        "member": format!("{:x}", done.member),
        "cluster": format!("{:x}", done.cluster),
        "next": "start it with its --name and --initial-cluster NAME=URL, then add members, with empty folders",
    });
    let columns = [
        ("REVISION", "/revision"),
        ("KEYS", "/keys"),
        ("FROM LOG", "/applied"),
        ("LOG LOST", "/lost"),
        ("MEMBER", "/member"),
        ("CLUSTER", "/cluster"),
        ("NEXT", "/next"),
    ];
    tell(global, &columns, value);
    Ok(())
}

fn tell(global: &Global, columns: &[(&str, &str)], value: serde_json::Value) {
    match global.output {
        Format::Table | Format::Name => output::table(columns, &[value]),
        f => output::value(f, &value),
    }
}

fn show(global: &Global, s: &SnapshotStatus) {
    let value = json!({
        "hash": format!("{:08x}", s.hash),
        "revision": s.revision,
        "totalKey": s.total_keys,
        "totalSize": s.total_size,
    });
    let columns =
        [("HASH", "/hash"), ("REVISION", "/revision"), ("VERSIONS", "/totalKey"), ("BYTES", "/totalSize")];
    tell(global, &columns, value);
}

async fn save(global: &Global, file: PathBuf, endpoints: Option<String>) -> Result<SnapshotStatus> {
    let mut saver = Saver::new(&file)?;
    let paths = Paths::new(&global.data_dir());
    let url = match endpoints {
        Some(u) => u,
        None if paths.coordinator().exists() => {
            return Err(Error::invalid("endpoints", "is missing: this cloud has no store of its own")
                .hint("save the etcd that it runs on, with etcdctl snapshot save"));
        }
        None => super::import::own_store(&Profile::load(&paths.creds("admin.json"))?)?,
    };
    if url.starts_with("http://") {
        let mut pieces = snapshot::fetch(&url).await?;
        while let Some(piece) = pieces.next().await {
            saver.add(&piece?)?;
        }
    } else {
        // Only the operator sees everything, and only then is a snapshot whole.
        let text = |name: &str| photon_rt::fs::read_text(&paths.creds(name), 1 << 20);
        let pair = CertPair { cert_pem: text("operator.crt")?, key_pem: text("operator.key")? };
        let client = Client::new(&url, &text("ca.crt")?, Credentials::Certificate(pair))?;
        let mut answer =
            client.send(http::Method::POST, "/v3/maintenance/snapshot", &[], b"{}").await?.into_body();
        let mut lines = JsonPieces::default();
        while let Some(frame) = answer.frame().await {
            let frame = frame.map_err(|e| Error::unavailable("the snapshot broke off").why(e))?;
            if let Ok(data) = frame.into_data() {
                for piece in lines.feed(&data)? {
                    saver.add(&piece)?;
                }
            }
        }
    }
    photon_rt::task::blocking(move || saver.finish()).await.map_err(|e| match e.code {
        Code::Invalid => Error::unavailable("the snapshot did not arrive whole").why(e.what),
        _ => e,
    })
}
