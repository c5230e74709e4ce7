//! The machine's side of joining: shows a token to a cloud that it knows by its fingerprint, and gets what makes it
//! a node.

use crate::{
    enrol::{Admission, JoinRequest},
    token::JoinToken,
};
use http::Method;
use photon_base::{Name, Result};
use photon_client::{Client, Credentials, Met};

/// What the machine says of itself.
#[derive(Clone, Debug)]
pub struct Introduction {
    /// Its name.
    pub name: Name,
    /// Its front door.
    pub endpoint: String,
    /// Where the other nodes will reach its store.
    pub peer_url: String,
    /// Where it will gossip.
    pub gossip: String,
    /// Its version.
    pub version: String,
    /// Drawn once and kept until it is in: asked again with it, the cloud answers the same.
    pub nonce: String,
}

/// Meets the cloud whose front door is `endpoint`: its authority, and the address that this machine has towards it.
pub async fn meet(endpoint: &str, token: &JoinToken) -> Result<Met> {
    photon_client::meet(endpoint, token.authority).await
}

/// Asks to be let in.
pub async fn join(endpoint: &str, authority: &str, token: &JoinToken, me: Introduction) -> Result<Admission> {
    let client = Client::new(endpoint, authority, Credentials::Anonymous)?;
    let request = JoinRequest {
        secret: token.secret(),
        nonce: me.nonce,
        name: me.name,
        endpoint: me.endpoint,
        peer_url: me.peer_url,
        gossip: me.gossip,
        version: me.version,
    };
    let body = serde_json::to_value(&request)
        .map_err(|e| photon_base::Error::internal("the request can't be written").why(e))?;
    let answer = client.call(Method::POST, "/v1/join", Some(&body)).await?;
    serde_json::from_value(answer)
        .map_err(|e| photon_base::Error::internal("the cloud's answer is not an admission").why(e))
}
