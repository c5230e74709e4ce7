//! etcd's JSON gateway: `POST /v3/kv/range` and so on. Each request becomes a gRPC request to the same
//! services with the same caller, so that every check there holds here. A stream is answered as lines of
//! `{"result": …}`.
//!
//! Unlike etcd this answers no web page: etcd allows every origin, so any page that an administrator
//! looks at may write to an etcd on the same machine.

use super::{MAX_MESSAGE, grpc::Grpc, json};
use axum::body::{Body, HttpBody};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, Request, Response, StatusCode, header};
use photon_auth::CommonName;
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor, MethodDescriptor};
use serde_json::{Value, json};
use std::{collections::HashMap, pin::Pin, sync::Arc, sync::OnceLock};
use tonic::{Code, Status};
use tower::Service;

/// Largest body: the largest message in base64, and room for names.
const MAX_BODY: usize = MAX_MESSAGE / 3 * 4 + (64 << 10);

/// How much of a body that is too large is still read, and thrown away: who is answered in the middle of
/// sending may lose the answer with the connection.
const MAX_DRAINED: usize = 4 * MAX_BODY;

/// Paths below `/v3/` and the methods behind them (the HTTP options of etcd's rpc.proto).
const PATHS: [(&str, &str); 51] = [
    ("kv/range", "etcdserverpb.KV/Range"),
    ("kv/put", "etcdserverpb.KV/Put"),
    ("kv/deleterange", "etcdserverpb.KV/DeleteRange"),
    ("kv/txn", "etcdserverpb.KV/Txn"),
    ("kv/compaction", "etcdserverpb.KV/Compact"),
    ("watch", "etcdserverpb.Watch/Watch"),
    ("lease/grant", "etcdserverpb.Lease/LeaseGrant"),
    ("lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("kv/lease/revoke", "etcdserverpb.Lease/LeaseRevoke"),
    ("lease/keepalive", "etcdserverpb.Lease/LeaseKeepAlive"),
    ("lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("kv/lease/timetolive", "etcdserverpb.Lease/LeaseTimeToLive"),
    ("lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("kv/lease/leases", "etcdserverpb.Lease/LeaseLeases"),
    ("cluster/member/add", "etcdserverpb.Cluster/MemberAdd"),
    ("cluster/member/remove", "etcdserverpb.Cluster/MemberRemove"),
    ("cluster/member/update", "etcdserverpb.Cluster/MemberUpdate"),
    ("cluster/member/list", "etcdserverpb.Cluster/MemberList"),
    ("cluster/member/promote", "etcdserverpb.Cluster/MemberPromote"),
    ("maintenance/alarm", "etcdserverpb.Maintenance/Alarm"),
    ("maintenance/status", "etcdserverpb.Maintenance/Status"),
    ("maintenance/defragment", "etcdserverpb.Maintenance/Defragment"),
    ("maintenance/hash", "etcdserverpb.Maintenance/Hash"),
    ("maintenance/hashkv", "etcdserverpb.Maintenance/HashKV"),
    ("maintenance/snapshot", "etcdserverpb.Maintenance/Snapshot"),
    ("maintenance/transfer-leadership", "etcdserverpb.Maintenance/MoveLeader"),
    ("maintenance/downgrade", "etcdserverpb.Maintenance/Downgrade"),
    ("auth/enable", "etcdserverpb.Auth/AuthEnable"),
    ("auth/disable", "etcdserverpb.Auth/AuthDisable"),
    ("auth/status", "etcdserverpb.Auth/AuthStatus"),
    ("auth/authenticate", "etcdserverpb.Auth/Authenticate"),
    ("auth/user/add", "etcdserverpb.Auth/UserAdd"),
    ("auth/user/get", "etcdserverpb.Auth/UserGet"),
    ("auth/user/list", "etcdserverpb.Auth/UserList"),
    ("auth/user/delete", "etcdserverpb.Auth/UserDelete"),
    ("auth/user/changepw", "etcdserverpb.Auth/UserChangePassword"),
    ("auth/user/grant", "etcdserverpb.Auth/UserGrantRole"),
    ("auth/user/revoke", "etcdserverpb.Auth/UserRevokeRole"),
    ("auth/role/add", "etcdserverpb.Auth/RoleAdd"),
    ("auth/role/get", "etcdserverpb.Auth/RoleGet"),
    ("auth/role/list", "etcdserverpb.Auth/RoleList"),
    ("auth/role/delete", "etcdserverpb.Auth/RoleDelete"),
    ("auth/role/grant", "etcdserverpb.Auth/RoleGrantPermission"),
    ("auth/role/revoke", "etcdserverpb.Auth/RoleRevokePermission"),
    ("lock/lock", "v3lockpb.Lock/Lock"),
    ("lock/unlock", "v3lockpb.Lock/Unlock"),
    ("election/campaign", "v3electionpb.Election/Campaign"),
    ("election/proclaim", "v3electionpb.Election/Proclaim"),
    ("election/leader", "v3electionpb.Election/Leader"),
    ("election/observe", "v3electionpb.Election/Observe"),
    ("election/resign", "v3electionpb.Election/Resign"),
];

/// The messages and services of the .proto files of `photon_etcd::proto`.
pub(super) fn pool() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        DescriptorPool::decode(photon_etcd::proto::DESCRIPTORS)
            .expect("the descriptors are part of the program")
    })
}

/// The gateway before the services.
#[derive(Clone)]
pub struct Gateway {
    grpc: Grpc,
    methods: Arc<HashMap<&'static str, MethodDescriptor>>,
}

impl Gateway {
    /// Before these services.
    pub fn new(grpc: Grpc) -> Gateway {
        let find = |name: &str| {
            let (service, method) = name.split_once('/')?;
            pool().get_service_by_name(service)?.methods().find(|m| m.name() == method)
        };
        let methods = PATHS.iter().filter_map(|(path, name)| Some((*path, find(name)?))).collect();
        Gateway { grpc, methods: Arc::new(methods) }
    }

    /// Answers a request.
    pub async fn answer(mut self, request: Request<Body>) -> Response<Body> {
        let path = request.uri().path().strip_prefix("/v3/").unwrap_or_default();
        let Some(method) = self.methods.get(path).cloned() else {
            return plain(StatusCode::NOT_FOUND, "Not Found\n");
        };
        if request.method() != http::Method::POST {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed\n");
        }
        if request.headers().contains_key(header::ORIGIN) {
            return error(&Status::permission_denied("requests of web pages are not answered"));
        }
        let (parts, body) = request.into_parts();
        let Some(body) = whole(body).await else {
            return error(&Status::resource_exhausted("the body is too large"));
        };
        let frames = match frames(&body, &method) {
            Ok(f) => f,
            Err(why) => return error(&Status::invalid_argument(why)),
        };
        let mut inner = Request::new(Body::from(frames));
        *inner.method_mut() = http::Method::POST;
        *inner.version_mut() = http::Version::HTTP_2;
        let uri = format!("/{}/{}", method.parent_service().full_name(), method.name());
        match uri.parse() {
            Ok(uri) => *inner.uri_mut() = uri,
            Err(_) => return error(&Status::internal("a method without a path")),
        }
        let headers = inner.headers_mut();
        headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/grpc"));
        headers.insert(header::TE, http::HeaderValue::from_static("trailers"));
        for name in ["authorization", "token"] {
            if let Some(v) = parts.headers.get(name) {
                headers.insert(name, v.clone());
            }
        }
        *inner.extensions_mut() = parts.extensions; // who asks
        // As etcd has it: over the gateway a certificate names no user.
        inner.extensions_mut().remove::<CommonName>();
        let Ok(answer) = self.grpc.call(inner).await;
        let (head, body) = answer.into_parts();
        let mut messages =
            Messages { head: head.headers, body, buffer: BytesMut::new(), kind: method.output() };
        if method.is_server_streaming() {
            return lines(messages).await;
        }
        match messages.next().await {
            Ok(Some(m)) => json_body(StatusCode::OK, m.to_string()),
            Ok(None) => error(&Status::internal("no answer")),
            Err(e) => error(&e),
        }
    }
}

/// The messages of a body, framed for gRPC. A body of nothing is one empty message; a stream may have
/// several, one after the other.
fn frames(body: &[u8], method: &MethodDescriptor) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let mut n = 0;
    for j in serde_json::Deserializer::from_slice(body).into_iter::<Value>() {
        let m = json::read(&j.map_err(|e| e.to_string())?, &method.input())?;
        frame(&m, &mut out);
        n += 1;
        if !method.is_client_streaming() {
            break;
        }
    }
    if n == 0 {
        frame(&DynamicMessage::new(method.input()), &mut out);
    }
    Ok(out)
}

fn frame(m: &DynamicMessage, out: &mut Vec<u8>) {
    let bytes = m.encode_to_vec();
    out.put_u8(0);
    out.put_u32(bytes.len() as u32); // of a bounded body
    out.extend_from_slice(&bytes);
}

/// The messages of a gRPC answer.
struct Messages {
    head: HeaderMap,
    body: Body,
    buffer: BytesMut,
    kind: MessageDescriptor,
}

impl Messages {
    /// The next one as JSON; nothing after the last.
    async fn next(&mut self) -> Result<Option<Value>, Status> {
        loop {
            if let Some(e) = Status::from_header_map(&self.head).filter(|s| s.code() != Code::Ok) {
                return Err(e);
            }
            if self.buffer.len() >= 5 {
                let n = u32::from_be_bytes([self.buffer[1], self.buffer[2], self.buffer[3], self.buffer[4]]);
                let n = n as usize;
                if self.buffer.len() >= 5 + n {
                    self.buffer.advance(5);
                    let m = DynamicMessage::decode(self.kind.clone(), self.buffer.split_to(n))
                        .map_err(|e| Status::internal(e.to_string()))?;
                    return Ok(Some(json::write(&m)));
                }
            }
            match std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
                None => return Ok(None),
                Some(Err(e)) => return Err(Status::internal(e.to_string())),
                Some(Ok(f)) => match f.into_data() {
                    Ok(data) => self.buffer.extend_from_slice(&data),
                    Err(f) => {
                        if let Ok(trailers) = f.into_trailers() {
                            self.head = trailers;
                        }
                    }
                },
            }
        }
    }
}

/// A stream as lines. Its first line decides about the status.
async fn lines(mut messages: Messages) -> Response<Body> {
    let first = match messages.next().await {
        Err(e) => return json_body(http_code(e.code()), format!("{}\n", broken(&e))),
        Ok(None) => return json_body(StatusCode::OK, String::new()),
        Ok(Some(m)) => line(&m),
    };
    let rest = futures::stream::unfold(Some(messages), |messages| async move {
        let mut messages = messages?;
        match messages.next().await {
            Ok(None) => None,
            Ok(Some(m)) => Some((Ok(line(&m)), Some(messages))),
            Err(e) => Some((Ok(Bytes::from(format!("{}\n", broken(&e)))), None)),
        }
    });
    let all = futures::StreamExt::chain(
        futures::stream::once(std::future::ready(Ok::<_, std::convert::Infallible>(first))),
        rest,
    );
    with_type(StatusCode::OK, "application/json", Body::from_stream(all))
}

fn line(m: &Value) -> Bytes {
    format!("{}\n", json!({ "result": m })).into()
}

/// The end of a stream that failed.
fn broken(e: &Status) -> Value {
    let http = http_code(e.code());
    json!({ "error": {
        "grpc_code": e.code() as i32,
        "http_code": http.as_u16(),
        "message": e.message(),
        "http_status": http.canonical_reason().unwrap_or_default(),
    } })
}

fn error(e: &Status) -> Response<Body> {
    let body = json!({ "error": e.message(), "message": e.message(), "code": e.code() as i32 });
    json_body(http_code(e.code()), body.to_string())
}

fn json_body(code: StatusCode, body: String) -> Response<Body> {
    with_type(code, "application/json", Body::from(body))
}

fn plain(code: StatusCode, text: &'static str) -> Response<Body> {
    with_type(code, "text/plain; charset=utf-8", Body::from(text))
}

fn with_type(code: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut r = Response::new(body);
    *r.status_mut() = code;
    r.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    r.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, http::HeaderValue::from_static("nosniff"));
    r
}

/// grpc-gateway's table.
fn http_code(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::Cancelled => StatusCode::REQUEST_TIMEOUT,
        Code::InvalidArgument | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::FailedPrecondition => StatusCode::PRECONDITION_FAILED,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

/// The body, unless it breaks off or is too large.
async fn whole(body: Body) -> Option<Bytes> {
    let mut parts = body.into_data_stream();
    let (mut kept, mut seen) = (BytesMut::new(), 0);
    while let Some(part) = parts.next().await {
        let part = part.ok()?;
        seen += part.len();
        if seen <= MAX_BODY {
            kept.extend_from_slice(&part);
        } else if seen > MAX_DRAINED {
            return None;
        } else {
            kept = BytesMut::new();
        }
    }
    (seen <= MAX_BODY).then(|| kept.freeze())
}
