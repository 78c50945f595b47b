//! `/healthz` and `/readyz`, for the Deployment's probes.
//!
//! Alive is whoever answers and still looks at the Lease. Ready is whose API server has answered lately,
//! whether it leads or not: a follower is ready to take over.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use axum::{Router, http::StatusCode, routing::get};
use tokio::{net::TcpListener, sync::watch, time::Instant};

/// Without an answer of the API server for so long an instance is not ready.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// Without one for so long something hangs, and a restart is worth a try.
const ALIVE_WITHIN: Duration = Duration::from_secs(600);

/// The bound address.
pub struct Health {
    listener: TcpListener,
    answers: watch::Receiver<Instant>,
}

impl Health {
    /// Binds `address`, or all of IPv4 for all of IPv6 where the machine has none; `answers` tells when the
    /// API server last answered.
    ///
    /// # Errors
    ///
    /// The address cannot be bound.
    pub async fn bind(
        address: SocketAddr,
        answers: watch::Receiver<Instant>,
    ) -> std::io::Result<Self> {
        let listener = match TcpListener::bind(address).await {
            Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED => {
                TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await?
            }
            bound => bound?,
        };
        Ok(Self { listener, answers })
    }

    /// Answers for ever.
    ///
    /// # Errors
    ///
    /// The listener has failed.
    pub async fn serve(self) -> std::io::Result<()> {
        let route = |within: Duration| {
            let answers = self.answers.clone();
            get(move || {
                let last = *answers.borrow();
                async move { answer(last.elapsed(), within) }
            })
        };
        let router = Router::new()
            .route("/healthz", route(ALIVE_WITHIN))
            .route("/readyz", route(READY_WITHIN));
        axum::serve(self.listener, router).await
    }
}

fn answer(silence: Duration, within: Duration) -> (StatusCode, String) {
    if silence <= within {
        return (StatusCode::OK, "ok\n".to_owned());
    }
    let text = format!(
        "no answer of the API server about the Lease for {} s\n",
        silence.as_secs()
    );
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An instance whose API server is silent is not ready, and much later not alive.
    #[test]
    fn silence_is_told() {
        let codes = |seconds| {
            let silence = Duration::from_secs(seconds);
            [ALIVE_WITHIN, READY_WITHIN].map(|within| answer(silence, within).0)
        };
        assert_eq!(codes(30), [StatusCode::OK; 2]);
        assert_eq!(codes(31), [StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE]);
        assert_eq!(codes(601), [StatusCode::SERVICE_UNAVAILABLE; 2]);
        let text = answer(Duration::from_secs(31), READY_WITHIN).1;
        assert!(text.contains("31 s"), "{text}");
    }
}
