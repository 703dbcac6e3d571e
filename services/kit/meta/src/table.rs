//! A typed view of the keys under one tag byte.
//!
//! Invariant: a value is a version byte and a prost message; an unknown version is an error, never a guess.

use std::marker::PhantomData;

use crate::{Batch, Db, Error};

const RECORD_VERSION: u8 = 1;

/// Records of one type.
#[derive(Debug)]
pub struct Table<R> {
    db: Db,
    tag: u8,
    records: PhantomData<fn() -> R>,
}

impl<R> Clone for Table<R> {
    fn clone(&self) -> Self {
        Self {
            db: self.db.clone(),
            tag: self.tag,
            records: PhantomData,
        }
    }
}

impl<R: prost::Message + Default> Table<R> {
    /// The table with this tag; tags are listed in the service's schema.rs. Tag 0 is the database's own.
    pub fn new(db: &Db, tag: u8) -> Self {
        Self {
            db: db.clone(),
            tag,
            records: PhantomData,
        }
    }

    fn key(&self, key: &[u8]) -> Vec<u8> {
        let mut full = Vec::with_capacity(key.len() + 1);
        full.push(self.tag);
        full.extend_from_slice(key);
        full
    }

    fn decode(&self, value: &[u8]) -> Result<R, Error> {
        let wrong = |reason: String| Error::Record {
            table: self.tag,
            reason,
        };
        match value.split_first() {
            Some((&RECORD_VERSION, body)) => {
                R::decode(body).map_err(|error| wrong(error.to_string()))
            }
            Some((version, _)) => Err(wrong(format!("unknown record version {version}"))),
            None => Err(wrong("it is empty".into())),
        }
    }

    /// One record.
    ///
    /// # Errors
    /// When the database or the record cannot be read.
    pub fn get(&self, key: &[u8]) -> Result<Option<R>, Error> {
        self.db
            .get(&self.key(key))?
            .map(|value| self.decode(&value))
            .transpose()
    }

    /// Every record, in order of its key.
    ///
    /// # Errors
    /// When the database or a record cannot be read.
    pub fn scan(&self) -> Result<Vec<(Vec<u8>, R)>, Error> {
        self.scan_prefix(&[])
    }

    /// The records whose key starts with `prefix`.
    ///
    /// # Errors
    /// When the database or a record cannot be read.
    pub fn scan_prefix(&self, prefix: &[u8]) -> Result<Vec<(Vec<u8>, R)>, Error> {
        self.collect(self.db.prefix(&self.key(prefix)))
    }

    /// The records from `key` on.
    ///
    /// # Errors
    /// When the database or a record cannot be read.
    pub fn scan_from(&self, key: &[u8]) -> Result<Vec<(Vec<u8>, R)>, Error> {
        self.collect(self.db.range(self.key(key), self.tag))
    }

    fn collect(
        &self,
        found: impl Iterator<Item = Result<(Vec<u8>, Vec<u8>), Error>>,
    ) -> Result<Vec<(Vec<u8>, R)>, Error> {
        found
            .map(|pair| {
                let (key, value) = pair?;
                Ok((
                    key.get(1..).unwrap_or_default().to_vec(),
                    self.decode(&value)?,
                ))
            })
            .collect()
    }

    /// Adds a write to a batch.
    pub fn put(&self, batch: &mut Batch, key: &[u8], record: &R) {
        let mut value = vec![RECORD_VERSION];
        // Encoding into a growing buffer cannot fail: prost's only error is a full one.
        value.extend_from_slice(&record.encode_to_vec());
        batch.insert(self.key(key), value);
    }

    /// Adds a removal to a batch.
    pub fn delete(&self, batch: &mut Batch, key: &[u8]) {
        batch.remove(self.key(key));
    }
}
