//! Writing once: a blob takes the place of none that clients may have used, unless that one is of no use.

use super::outputs::{self, OutputsDigest};
use super::scrub::end_of;
use super::{Error, Store, Writer, WrittenBy};
use crate::contract::key::Key;

/// So often it is looked again what is there; each time another writer was faster.
const TRIES: u32 = 8;

/// What became of a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stored {
    /// There was none.
    New,
    /// It took the place of one that was of no use.
    Replaced,
    /// The one that was there holds the same, and stays.
    Same,
    /// The one that was there holds something else, and stays.
    Different(Box<Difference>),
}

/// Two results of one compile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Of the outputs that stay.
    pub kept: OutputsDigest,
    /// Of the outputs that were sent; `None` where they cannot be made out.
    pub sent: Option<OutputsDigest>,
    /// Who has written those that stay.
    pub kept_by: WrittenBy,
}

impl Store {
    /// Makes a blob visible, the last bytes of whose body are `last`, if there is none of that key or one that no client
    /// could use.
    ///
    /// # Errors
    /// As [`Writer::write_last`].
    pub fn write_once(&self, key: &Key, writer: Writer, last: Vec<u8>) -> Result<Stored, Error> {
        let mut taken = match writer.write_last_if_new(last)? {
            None => return Ok(Stored::New),
            Some(taken) => taken,
        };
        let sent = taken.body().ok();
        let sent = sent.and_then(|(file, len)| outputs::digest(&file, len).ok());
        for _ in 0..TRIES {
            match self.outputs(key) {
                Ok(Some(kept)) => {
                    return Ok(match sent == Some(kept) {
                        true => Stored::Same,
                        false => Stored::Different(Box::new(Difference {
                            kept,
                            sent,
                            kept_by: self.written_by(key),
                        })),
                    });
                }
                // A client that has found it of no use sends it again: that is how it is mended.
                Ok(None) => return taken.replace().map(|_| Stored::Replaced),
                Err(Error::Missing) => {}
                Err(error) => return Err(error),
            }
            taken = match taken.publish_if_new()? {
                None => return Ok(Stored::Replaced),
                Some(taken) => taken,
            };
        }
        taken.replace().map(|_| Stored::Replaced)
    }

    /// Who has written a blob, as far as its file says.
    pub fn written_by(&self, key: &Key) -> WrittenBy {
        let path = self.inner.path_of(key, &super::digest_of(key));
        end_of(&path).map_or_else(WrittenBy::default, |end| end.by)
    }
}
