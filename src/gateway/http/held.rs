//! The body of an answer by hyper, which says nothing of when it has sent the last of it.

use crate::gateway::connection_limit::Working;
use crate::gateway::disk::Download;
use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};

type Whole = Either<Full<Bytes>, Download>;

/// A body whose connection is at work for as long as it is there.
pub(super) struct Held {
    pub(super) body: Whole,
    pub(super) _working: Working,
}

impl Body for Held {
    type Data = Bytes;
    type Error = <Whole as Body>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
