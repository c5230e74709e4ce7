//! `photon image import`.

use super::{Global, kinds, output, wait};
use clap::{Arg, ArgMatches, Command};
use futures::StreamExt;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use photon_base::{Code, Error, Name, Result};
use photon_client::Client;
use photon_resource::KindInfo;
use photon_rt::time::Duration;
use serde_json::json;
use std::{io::Read, path::PathBuf};
use tokio::sync::mpsc;

/// The command.
pub fn command() -> Command {
    Command::new("import")
        .about("Make an image of a raw or qcow2 file")
        .after_help("Example: photon image import debian-12.qcow2 --name debian-12 --wait")
        .arg(Arg::new("file").required(true).value_name("FILE").value_parser(clap::value_parser!(PathBuf)))
        .arg(
            Arg::new("as")
                .long("name")
                .value_name("NAME")
                .help("Name of the image; the file's own if not given"),
        )
        .arg(
            Arg::new("format")
                .long("format")
                .value_parser(["raw", "qcow2"])
                .help("Format; read off the file if not given"),
        )
        .arg(Arg::new("description").long("description").value_name("TEXT").help("What it is"))
}

fn guess(path: &std::path::Path) -> std::io::Result<&'static str> {
    let mut head = Vec::new();
    photon_rt::fs::open(path)?.take(4).read_to_end(&mut head)?;
    Ok(if head == b"QFI\xfb" { "qcow2" } else { "raw" })
}

/// Creates the image and sends the file. The server checks it before anything uses it.
pub async fn import(global: &Global, kind: &KindInfo, client: &Client, m: &ArgMatches) -> Result<()> {
    let file = m.get_one::<PathBuf>("file").cloned().unwrap_or_default();
    let cannot =
        |e: std::io::Error| Error::new(Code::NotFound, format!("cannot read {}", file.display())).why(e);
    let size = photon_rt::fs::metadata(&file).map_err(cannot)?.len();
    let format = match m.get_one::<String>("format") {
        Some(f) => f.clone(),
        None => guess(&file).map_err(cannot)?.to_string(),
    };
    let stem = file.file_stem().map(|s| s.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: Name = m
        .get_one::<String>("as")
        .unwrap_or(&stem)
        .parse()
        .map_err(|e: Error| e.hint("give one: --name NAME"))?;
    let base = kinds::list_path(kind, None)?;
    let description = m.get_one::<String>("description").cloned().unwrap_or_default();
    let body = json!({ "meta": { "name": name }, "spec": { "format": format, "description": description } });
    match client.call(Method::POST, &base, Some(&body)).await {
        // An import that broke off before is taken up again.
        Err(e) if e.code == Code::Exists => {}
        r => drop(r?),
    }
    let (tx, mut rx) = mpsc::channel::<std::io::Result<Frame<bytes::Bytes>>>(4);
    let mut reader = photon_rt::fs::open(&file).map_err(cannot)?;
    photon_rt::task::thread("read-image", move || {
        let mut sent = 0u64;
        loop {
            let mut buffer = vec![0u8; 256 << 10];
            let item = match reader.read(&mut buffer) {
                Ok(0) => return,
                Ok(n) => {
                    buffer.truncate(n);
                    sent += n as u64;
                    progress(sent, size);
                    Ok(Frame::data(buffer.into()))
                }
                Err(e) => Err(e),
            };
            if tx.blocking_send(item).is_err() {
                return;
            }
        }
    })
    .map_err(|e| Error::internal("cannot read the file").why(e))?;
    let stream = futures::stream::poll_fn(move |cx| rx.poll_recv(cx)).fuse();
    // The channel's stream is not Sync, which the body type asks for; a mutex makes it so.
    let body = StreamBody::new(stream);
    client.upload(&format!("{base}/{name}/content"), size, BodyExt::boxed(body)).await?;
    let mut o = client.get(&format!("{base}/{name}")).await?;
    if m.get_flag("wait") {
        let limit = Duration::from_secs(m.get_one::<u64>("timeout").copied().unwrap_or(300));
        o = wait::settled(client, kind, &base, o, limit).await?;
    }
    output::line(&format!("image {name} {}", o["status"]["phase"].as_str().unwrap_or_default()));
    let _ = global;
    Ok(())
}

fn progress(sent: u64, size: u64) {
    use std::io::IsTerminal;
    if std::io::stderr().is_terminal() && size > 0 {
        eprint!("\r{:>3} %", sent * 100 / size);
        if sent >= size {
            eprintln!();
        }
    }
}
