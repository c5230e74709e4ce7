//! Leases: made, ended, asked about, and kept alive.

use crate::{
    client::Etcd,
    fault::Fault,
    proto::etcdserverpb::{
        LeaseGrantRequest, LeaseKeepAliveRequest, LeaseLeasesRequest, LeaseRevokeRequest,
        LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, lease_client::LeaseClient,
    },
};
use futures::stream;
use photon_rt::time::{Duration, now, sleep};
use tokio::sync::{oneshot, watch};
use tonic::{Code, Response, Status};

/// A lease that is kept alive until this is dropped.
#[derive(Debug)]
pub struct Kept {
    lost: watch::Receiver<bool>,
    _until: oneshot::Sender<()>,
}

impl Kept {
    /// Resolves when the lease is gone, or must be taken for gone: nobody has renewed it for as long as it lives.
    pub async fn lost(&mut self) {
        let _ = self.lost.wait_for(|lost| *lost).await; // its keeper is gone with the client
    }
}

impl Etcd {
    /// Makes a lease of `ttl` seconds; `id` 0: etcd chooses. A lost answer leaves a lease that ends by itself, or
    /// with a chosen `id` one that is found when the call is repeated.
    pub async fn grant(&self, id: i64, ttl: i64) -> Result<i64, Fault> {
        let asked = self.call(true, |wire| {
            let request = LeaseGrantRequest { id, ttl };
            async move { LeaseClient::new(wire).lease_grant(request).await }
        });
        Ok(asked.await?.id)
    }

    /// Ends a lease, and its keys; fine when it is gone already.
    pub async fn revoke(&self, id: i64) -> Result<(), Fault> {
        let asked = self.call(true, |wire| {
            let request = LeaseRevokeRequest { id };
            async move { LeaseClient::new(wire).lease_revoke(request).await }
        });
        match asked.await {
            Err(Fault::Refused(s)) if s.code() == Code::NotFound => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// How long a lease has left (-1: it is gone), and its keys if wanted.
    pub async fn time_to_live(&self, id: i64, keys: bool) -> Result<LeaseTimeToLiveResponse, Fault> {
        self.call(true, |wire| {
            let request = LeaseTimeToLiveRequest { id, keys };
            async move { LeaseClient::new(wire).lease_time_to_live(request).await }
        })
        .await
    }

    /// All leases.
    pub async fn leases(&self) -> Result<Vec<i64>, Fault> {
        let asked = self.call(true, |wire| async move {
            LeaseClient::new(wire).lease_leases(LeaseLeasesRequest {}).await
        });
        Ok(asked.await?.leases.into_iter().map(|l| l.id).collect())
    }

    /// Renews a lease once; the seconds that it has now, 0 when it is gone.
    pub async fn renew(&self, id: i64) -> Result<i64, Fault> {
        let asked = self.call(true, |wire| async move {
            let beats = stream::iter([LeaseKeepAliveRequest { id }]);
            let mut answers = LeaseClient::new(wire).lease_keep_alive(beats).await?.into_inner();
            let answer = answers.message().await?;
            answer.map(Response::new).ok_or_else(|| Status::unavailable("the stream ended without an answer"))
        });
        Ok(asked.await?.ttl)
    }

    /// Renews a lease three times in its life, for as long as the answer is kept.
    pub fn keep_alive(&self, id: i64, ttl: i64) -> Kept {
        let (tell, lost) = watch::channel(false);
        let (until, dropped) = oneshot::channel();
        let me = self.clone();
        self.0.tasks.spawn("etcd-lease", async move {
            tokio::select! {
                _ = dropped => {}
                () = me.keep(id, ttl) => { tell.send_replace(true); }
            }
        });
        Kept { lost, _until: until }
    }

    async fn keep(&self, id: i64, ttl: i64) {
        let mut life = Duration::from_secs(ttl.max(1) as u64);
        let mut renewed = now();
        loop {
            // From before the call: what the server grants begins no earlier.
            let asked = now();
            tokio::select! {
                () = photon_rt::time::sleep_until(renewed + life) => return,
                answer = self.renew(id) => match answer {
                    Ok(left) if left <= 0 => return,
                    Ok(left) => (renewed, life) = (asked, Duration::from_secs(left as u64)),
                    Err(e) => tracing::debug!(error = %e, id, "a lease was not renewed; trying again"),
                },
            }
            sleep(life / 3).await;
        }
    }
}
