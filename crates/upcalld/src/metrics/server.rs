//! HTTP, as little as a scraper needs: GET and HEAD of four paths, a connection for each.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{ANSWER_LIMIT, Scrape, exposition};
use crate::control::Question;

/// Connections at once; further ones wait in the kernel.
const CONNECTIONS_MAX: usize = 16;
/// How long a request may take to arrive.
const HEAD_LIMIT: Duration = Duration::from_secs(2);
/// How long a connection may last.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Pause after an error of `accept`: out of descriptors, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const INDEX: &str = "upcalld\n\n/metrics  counters, as OpenMetrics text\n/healthz  does it answer?\n\
                     /readyz   does it serve its datapaths, all of them?\n";

type Reply = Response<Full<Bytes>>;

/// A socket that listens.
pub(super) trait Listen {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    fn next(&self) -> impl Future<Output = std::io::Result<Self::Stream>> + Send;
}

impl Listen for TcpListener {
    type Stream = tokio::net::TcpStream;
    async fn next(&self) -> std::io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

impl Listen for UnixListener {
    type Stream = tokio::net::UnixStream;
    async fn next(&self) -> std::io::Result<Self::Stream> {
        Ok(self.accept().await?.0)
    }
}

/// Serves until the task is aborted; with it end its connections.
pub(super) async fn run(listener: impl Listen, questions: mpsc::Sender<Question>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        let Ok(stream) = listener.next().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let questions = questions.clone();
        connections.spawn(async move {
            let _permit = permit;
            let _whatever_became_of_it = timeout(CONNECTION_LIMIT, serve(stream, questions)).await;
        });
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    questions: mpsc::Sender<Question>,
) -> hyper::Result<()> {
    let service = service_fn(move |request| {
        let questions = questions.clone();
        async move { Ok::<_, Infallible>(answer(&request, &questions).await) }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer(request: &Request<Incoming>, questions: &mpsc::Sender<Question>) -> Reply {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return reply(StatusCode::METHOD_NOT_ALLOWED, TEXT, "GET or HEAD\n".to_owned());
    }
    match request.uri().path() {
        "/" => reply(StatusCode::OK, TEXT, INDEX.to_owned()),
        "/metrics" => match ask(questions).await {
            Ok(scrapes) => metrics(scrapes),
            Err(why) => unavailable(why),
        },
        // The task that does the work answers, whatever it says.
        "/healthz" => match ask(questions).await {
            Ok(_) => reply(StatusCode::OK, TEXT, "ok\n".to_owned()),
            Err(why) => unavailable(why),
        },
        "/readyz" => match ask(questions).await {
            Ok(scrapes) => match scrapes.iter().find_map(|scrape| scrape.readings.as_ref().err()) {
                None => reply(StatusCode::OK, TEXT, "serving\n".to_owned()),
                Some(why) => unavailable(why),
            },
            Err(why) => unavailable(why),
        },
        _ => reply(StatusCode::NOT_FOUND, TEXT, INDEX.to_owned()),
    }
}

async fn ask(questions: &mpsc::Sender<Question>) -> Result<Vec<Scrape>, &'static str> {
    let (reply, answered) = oneshot::channel();
    let asking = async {
        questions.send(Question::Metrics { reply }).await.ok()?;
        answered.await.ok()
    };
    match timeout(ANSWER_LIMIT, asking).await {
        Ok(Some(scrapes)) => Ok(scrapes),
        Ok(None) => Err("it is ending"),
        Err(_) => Err("the task that looks after the datapaths does not answer"),
    }
}

fn metrics(scrapes: Vec<Scrape>) -> Reply {
    match exposition::text(scrapes) {
        Ok(text) => reply(StatusCode::OK, OPENMETRICS, text),
        Err(why) => unavailable(&why),
    }
}

fn unavailable(why: &str) -> Reply {
    reply(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{why}\n"))
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Reply {
    let mut reply = Response::new(Full::from(text));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    reply
}
