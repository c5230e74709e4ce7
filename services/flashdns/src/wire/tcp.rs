//! Connections (RFC 7766): queries are pipelined, answers may overtake each other.

use super::Shared;
use crate::model::{Transport, Verdict};
use photon_rt::{
    net::{TcpListener, TcpStream},
    task::Tasks,
    time::{Duration, sleep, timeout},
};
use std::sync::Arc;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Semaphore, mpsc, watch},
};

/// How long a connection may be silent (RFC 7766 section 6.2.3 asks for "a few seconds").
const IDLE: Duration = Duration::from_secs(10);
/// How long a client may take to accept one answer.
const WRITE: Duration = Duration::from_secs(5);
/// How long a connection may last at all.
const LIFE: Duration = Duration::from_secs(120);
/// Queries under way of one connection.
const PIPELINE: usize = 16;
/// Longest query; a question has at most 255 bytes of name and OPT few of options.
const QUERY_MAX: usize = 4096;

/// Accepts connections up to the view's bound; those above are closed at once.
pub async fn serve(listener: TcpListener, shared: Arc<Shared>, tasks: Tasks, over: watch::Receiver<bool>) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "DNS listener");
                sleep(Duration::from_millis(50)).await; // out of descriptors, most likely
                continue;
            }
        };
        let Ok(place) = shared.connections.clone().try_acquire_owned() else { continue };
        let (shared, mut over, own) = (shared.clone(), over.clone(), tasks.clone());
        tasks.spawn("dns-connection", async move {
            let _place = place;
            tokio::select! {
                _ = timeout(LIFE, "a DNS connection", connection(stream, shared, own)) => {}
                _ = over.wait_for(|o| *o) => {}
            }
        });
    }
}

async fn connection(stream: TcpStream, shared: Arc<Shared>, tasks: Tasks) {
    let _ = stream.set_nodelay(true);
    let (mut from, mut to) = stream.into_split();
    let (answers, mut outbox) = mpsc::channel::<Vec<u8>>(PIPELINE);
    let read = async move {
        let under_way = Arc::new(Semaphore::new(PIPELINE));
        let mut packet = vec![0; QUERY_MAX];
        loop {
            let framed = async {
                let len = usize::from(from.read_u16().await?);
                if len > QUERY_MAX {
                    return Err(std::io::ErrorKind::InvalidData.into());
                }
                from.read_exact(&mut packet[..len]).await.map(|_| len)
            };
            let Ok(Ok(len)) = timeout(IDLE, "a DNS query", framed).await else { return };
            match shared.decide(&packet[..len], Transport::Tcp) {
                // What is not a query over a connection is a client gone wrong.
                Verdict::Silence => return,
                Verdict::Reply(reply) => {
                    if answers.send(reply).await.is_err() {
                        return;
                    }
                }
                Verdict::Forward(query) => {
                    // A client that asks faster than it is answered waits here.
                    let Ok(permit) = under_way.clone().acquire_owned().await else { return };
                    let (shared, answers) = (shared.clone(), answers.clone());
                    tasks.spawn("dns-forward", async move {
                        let _permit = permit;
                        let _ = answers.send(shared.ask(&query, Transport::Tcp).await).await;
                    });
                }
            }
        }
    };
    let write = async {
        while let Some(reply) = outbox.recv().await {
            // Length and message in one segment where possible (RFC 7766 section 8).
            let mut framed = (reply.len() as u16).to_be_bytes().to_vec();
            framed.extend_from_slice(&reply);
            if !matches!(timeout(WRITE, "a DNS answer", to.write_all(&framed)).await, Ok(Ok(()))) {
                return;
            }
        }
    };
    // When the client has said all, what is still under way is answered: the outbox ends with its last
    // sender. A client that does not take its answers ends the whole.
    let read = async {
        read.await;
        std::future::pending::<()>().await
    };
    tokio::select! { () = read => {}, () = write => {} }
}
