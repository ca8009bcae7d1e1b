//! An HTTP server for what molora trains, by OpenAI's interface: mixtures with all their tasks and experts,
//! plain models, encoders and classifiers.
//!
//! ```text
//! HTTP (axum) -> fields of the body, each read or refused by name -> requests
//!             -> a thread for all models on one base: molora_train::generate::Engine, one pass for all texts
//!             -> events -> one answer, or server-sent events as it is written
//! ```
//!
//! It is made for a team and not for the internet: requests are bounded in size, number and time, but there
//! is no TLS, and one key for all.
//!
//! ```no_run
//! use molora_serve::{Options, Server, Source};
//! use molora_train::generate::Writer;
//!
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let writer = Writer::of_run("run".as_ref(), None, None, None)?;
//! let models = vec![("mine".to_owned(), Source::Writer(Box::new(writer)))];
//! let server = Server::new(models, Options::default())?;
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await?;
//! server.run(listener, std::future::pending(), std::future::pending()).await;
//! # Ok(())
//! # }
//! ```

mod api;
mod error;
mod fields;
mod limits;
mod metrics;
mod models;
mod params;
mod texts;
mod worker;

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use molora_train::generate::EngineOptions;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use api::App;
use limits::{CONNECTIONS, HEAD_BYTES, HEAD_TIME};
use metrics::Metrics;
use models::Models;
pub use models::{ServeError, Source};

/// How a server works.
#[derive(Debug, Clone)]
pub struct Options {
    /// How much each model does at once, or all together that write on one base.
    pub engine: EngineOptions,
    /// Texts that may wait for each model beside those that are written; more are refused.
    pub max_waiting: usize,
    /// What every request but `/health` has to bring, if anything.
    pub key: Option<String>,
    /// How long requests may go on when the server ends.
    pub grace: Duration,
}

impl Default for Options {
    /// 16 texts of 2048 tokens, 256 that wait, no key, and 30 seconds.
    fn default() -> Self {
        Self {
            engine: EngineOptions {
                max_rows: 16,
                max_context: 2048,
                piece: 256,
            },
            max_waiting: 256,
            key: None,
            grace: Duration::from_secs(30),
        }
    }
}

/// Models behind HTTP.
#[derive(Debug)]
pub struct Server {
    app: Arc<App>,
    grace: Duration,
}

impl Server {
    /// Starts a thread for each model, given with its name, or for all that write on one base.
    ///
    /// # Errors
    /// Two models of one name, a name with a colon, or a model that cannot be served.
    pub fn new(models: Vec<(String, Source)>, options: Options) -> Result<Self, ServeError> {
        let room = options.engine.max_rows + options.max_waiting;
        let models = Models::start(models, options.engine, room, api::now())?;
        let app = App {
            models,
            metrics: Arc::new(Metrics::default()),
            key: options.key,
        };
        Ok(Self {
            app: Arc::new(app),
            grace: options.grace,
        })
    }

    /// Every name that a request can ask for.
    pub fn names(&self) -> Vec<String> {
        self.app.models.names()
    }

    /// Bytes that the caches of keys and values of all models may come to hold.
    pub fn most_cache_bytes(&self) -> usize {
        self.app.models.most_cache_bytes
    }

    /// Answers requests at an address until Ctrl-C or SIGTERM, and then those that are there already; a second
    /// signal cuts them off. `on_ready` is told the address, which says which port the system chose for 0.
    ///
    /// # Errors
    /// If the address cannot be had.
    pub fn serve(
        self,
        address: (&str, u16),
        on_ready: impl FnOnce(SocketAddr),
    ) -> std::io::Result<()> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let listener = TcpListener::bind(address).await?;
            let mut signals = Signals::new()?;
            on_ready(listener.local_addr()?);
            let (first, second) = (Notify::new(), Notify::new());
            let watch = async {
                for notify in [&first, &second] {
                    signals.next().await;
                    notify.notify_one();
                }
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = self.run(listener, first.notified(), second.notified()) => {}
                () = watch => {}
            }
            Ok(())
        })
    }

    /// Answers requests until `stop` is ready, and then those that are there already, until `cut` is ready or
    /// they took as long as they may.
    pub async fn run(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
        cut: impl Future<Output = ()>,
    ) {
        let router = api::router(self.app);
        let (graceful, places) = (
            GracefulShutdown::new(),
            Arc::new(Semaphore::new(CONNECTIONS)),
        );
        let mut stop = pin!(stop);
        loop {
            let next = pin!(accept(&listener, &places));
            tokio::select! {
                (stream, place) = next => connect(&router, stream, place, &graceful),
                () = &mut stop => break,
            }
        }
        drop(listener);
        tokio::select! {
            () = graceful.shutdown() => {}
            () = tokio::time::sleep(self.grace) => {
                let seconds = self.grace.as_secs();
                tracing::warn!("requests that were not answered within {seconds} seconds are cut off");
            }
            () = cut => tracing::warn!("requests that were not answered yet are cut off"),
        }
    }
}

/// Ctrl-C, and SIGTERM where there is such a thing.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            #[cfg(unix)]
            terminate: tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = tokio::signal::ctrl_c() => {}
            _ = self.terminate.recv() => {}
        }
        #[cfg(not(unix))]
        drop(tokio::signal::ctrl_c().await);
    }
}

/// The next connection, when there is a place for it.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> (TcpStream, OwnedSemaphorePermit) {
    let place = Arc::clone(places).acquire_owned().await;
    let place = place.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(error) => {
                // As a rule too many open files: others are closed in a while.
                tracing::warn!("no connection can be accepted: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Answers the requests of a connection.
fn connect(
    router: &Router,
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    graceful: &GracefulShutdown,
) {
    // Small pieces of text are sent at once.
    drop(stream.set_nodelay(true));
    let service = TowerToHyperService::new(router.clone());
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        let _place = place;
        if let Err(error) = connection.await {
            tracing::debug!("a connection ended: {error}");
        }
    });
}
