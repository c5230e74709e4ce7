//! `photon chainfire snapshot`: save, look at and restore whole states.

use super::{Format, Global, output};
use crate::node::Paths;
use chainfire::snapshot::{self, JsonPieces, Saver, SnapshotStatus};
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

fn show(global: &Global, s: &SnapshotStatus) {
    let value = json!({
        "hash": format!("{:08x}", s.hash),
        "revision": s.revision,
        "totalKey": s.total_keys,
        "totalSize": s.total_size,
    });
    match global.output {
        Format::Table | Format::Name => {
            let columns = [
                ("HASH", "/hash"),
                ("REVISION", "/revision"),
                ("VERSIONS", "/totalKey"),
                ("BYTES", "/totalSize"),
            ];
            output::table(&columns, &[value]);
        }
        f => output::value(f, &value),
    }
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
