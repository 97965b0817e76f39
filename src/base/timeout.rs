//! Timeouts.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use tokio::time::error::Elapsed;
use tokio::time::timeout;

/// Like `tokio::time::timeout`, but registers no timer if the future is ready on the first poll, as most are.
/// Registering one updates a counter that all threads share.
pub(crate) async fn within<F: Future>(limit: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    let at_once = poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    });
    match at_once.await {
        Some(output) => Ok(output),
        None => timeout(limit, future).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_ready_comes_and_what_is_not_in_time_does_not() {
        let limit = Duration::from_millis(1);
        assert!(matches!(within(Duration::ZERO, async { 1 }).await, Ok(1)));
        let soon = within(Duration::from_secs(60), tokio::task::yield_now());
        assert!(soon.await.is_ok());
        let never = within(limit, std::future::pending::<()>());
        assert!(never.await.is_err());
    }
}
