//! A blob on its way into the store.

use super::{CHUNK, Disk, DiskError, SMALL};
use crate::contract::key::Key;
use crate::gateway::zip::ZipCheck;
use crate::store;
use crate::store::{Store, Stored, Writer, WrittenBy};
use tokio::sync::OwnedSemaphorePermit;

/// Shortest piece of a longer body that is not collected with others before it is written.
const DIRECT: usize = 16 << 10;

impl Disk {
    /// Starts to put a blob, `length` bytes long where that is known. Room for a long one is reserved now.
    pub async fn put(
        &self,
        key: &Key,
        length: Option<u64>,
        by: WrittenBy,
    ) -> Result<Upload, DiskError> {
        let small = length
            .and_then(|length| usize::try_from(length).ok())
            .filter(|length| *length <= SMALL);
        let mut upload = Upload {
            disk: self.clone(),
            key: key.clone(),
            by: by.clone(),
            length,
            limit: if length.is_some() && small.is_none() {
                CHUNK
            } else {
                SMALL
            },
            buffer: Vec::with_capacity(small.map_or(0, |length| length + store::TRAILER_ROOM)),
            writer: None,
            check: key.is_sccache_entry().then(ZipCheck::default),
            received: 0,
            _permit: self.memory(small.unwrap_or(SMALL)).await?,
        };
        if let Some(length) = length.filter(|_| small.is_none()) {
            let owned = key.clone();
            let open = move |store: &Store| store.put_by(&owned, Some(length), by);
            let opened = self.write_quickly(key, length, open).await;
            if opened.is_err() {
                self.note_write(&opened);
            }
            upload.writer = Some(opened?);
        }
        Ok(upload)
    }
}

/// A blob on its way into the store. Dropped before [`Upload::finish`], it leaves nothing.
#[derive(Debug)]
pub struct Upload {
    disk: Disk,
    key: Key,
    by: WrittenBy,
    length: Option<u64>,
    limit: usize,
    buffer: Vec<u8>,
    writer: Option<Writer>,
    check: Option<ZipCheck>,
    received: u64,
    _permit: OwnedSemaphorePermit,
}

impl Upload {
    /// Bytes taken so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Takes the next piece of the body.
    pub async fn push(&mut self, bytes: &[u8]) -> Result<(), DiskError> {
        self.received += bytes.len() as u64;
        if let Some(check) = &mut self.check {
            check.update(bytes);
        }
        if bytes.len() >= DIRECT && self.buffer.is_empty() && self.write_now(bytes)? {
            return Ok(());
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(self.limit - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            rest = later;
            if self.buffer.len() == self.limit && (!rest.is_empty() || self.writer.is_some()) {
                self.flush().await?;
            }
        }
        Ok(())
    }

    /// Writes a piece on this thread. Returns whether: not if that could take long, or nothing is open yet.
    fn write_now(&mut self, bytes: &[u8]) -> Result<bool, DiskError> {
        let ready = |writer: &&mut Writer| writer.has_room_for(bytes.len());
        let Some(writer) = self.writer.as_mut().filter(ready) else {
            return Ok(false);
        };
        let Some(_turn) = self.disk.inline_writes.permit() else {
            return Ok(false);
        };
        let written = writer.write(bytes).map_err(DiskError::from);
        if written.is_err() {
            self.disk.note_write(&written);
        }
        written.map(|()| true)
    }

    /// Makes the blob visible, if there is none of its key or one that is of no use to clients.
    pub async fn finish_once(mut self) -> Result<Stored, DiskError> {
        if self.check.as_ref().is_some_and(|check| !check.is_whole()) {
            return Err(DiskError::NotZip);
        }
        let (writer, key, by) = (self.writer.take(), self.key.clone(), self.by.clone());
        let length = self.length.or(writer.is_none().then_some(self.received));
        let buffer = std::mem::take(&mut self.buffer);
        let outcome = self.disk.write(move |store| {
            let writer = match writer {
                Some(writer) => writer,
                None => store.put_by(&key, length, by)?,
            };
            store.write_once(&key, writer, buffer)
        });
        let outcome = outcome.await;
        self.disk.note_write(&outcome);
        outcome
    }

    /// Makes the blob visible. Returns whether it replaced an older one.
    pub async fn finish(mut self) -> Result<bool, DiskError> {
        if self.check.as_ref().is_some_and(|check| !check.is_whole()) {
            return Err(DiskError::NotZip);
        }
        let (writer, key, length) = (self.writer.take(), self.key.clone(), self.length);
        let by = self.by.clone();
        let length = length.or(writer.is_none().then_some(self.received));
        let buffer = std::mem::take(&mut self.buffer);
        let outcome = match writer {
            Some(writer) => {
                let turn = self.disk.inline_writes.permit();
                match turn.filter(|_| writer.has_room_for(buffer.len())) {
                    Some(_turn) => writer.write_last(buffer).map_err(DiskError::from),
                    None => self.disk.write(|_| writer.write_last(buffer)).await,
                }
            }
            None => {
                let put = move |store: &Store| store.put_by(&key, length, by)?.write_last(buffer);
                self.disk.write_quickly(&self.key, self.received, put).await
            }
        };
        self.disk.note_write(&outcome);
        outcome
    }

    /// Opens the writer when there is none yet, and writes what is buffered.
    async fn flush(&mut self) -> Result<(), DiskError> {
        let mut buffer = std::mem::take(&mut self.buffer);
        if self.write_now(&buffer)? {
            buffer.clear();
            self.buffer = buffer;
            return Ok(());
        }
        let (writer, key, length) = (self.writer.take(), self.key.clone(), self.length);
        let by = self.by.clone();
        let outcome = self
            .disk
            .write(move |store| {
                let mut writer = match writer {
                    Some(writer) => writer,
                    None => store.put_by(&key, length, by)?,
                };
                writer.write(&buffer)?;
                buffer.clear();
                Ok((writer, buffer))
            })
            .await;
        if outcome.is_err() {
            self.disk.note_write(&outcome);
        }
        let (writer, buffer) = outcome?;
        (self.writer, self.buffer) = (Some(writer), buffer);
        Ok(())
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        // Taking back a write unlinks its file, which may block: not on a thread that serves others.
        if let Some(writer) = self.writer.take() {
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => drop(runtime.spawn_blocking(move || drop(writer))),
                Err(_) => drop(writer),
            }
        }
    }
}
