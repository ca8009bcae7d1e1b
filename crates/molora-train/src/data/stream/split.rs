//! The records of a training split by their numbers.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::data::error::DataError;
use crate::data::format::{Index, Reader, Row, Wanted};
use crate::data::meta::MetaFile;
use crate::data::record::Record;
use crate::data::schema::{Reading, Schema, rename_all};
use crate::data::task::TaskMeta;
use crate::data::task::asked::ask_by_one;

/// Records that are read and checked when a task is, and by which columns are known.
const FIRST: usize = 1000;

/// A training split whose records are read when they are needed. Clones share the index of its files.
#[derive(Clone)]
pub struct StreamedSplit {
    index: Arc<Index>,
    schema: Schema,
    is_wanted: Wanted,
    file: Option<MetaFile>,
}

impl fmt::Debug for StreamedSplit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let records = self.records();
        f.debug_struct("StreamedSplit")
            .field("records", &records)
            .field("schema", &self.schema)
            .finish_non_exhaustive()
    }
}

impl PartialEq for StreamedSplit {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index && self.schema == other.schema
    }
}

impl StreamedSplit {
    /// Goes through files, and reads their first records.
    ///
    /// # Errors
    /// As [`Index::of`] and [`Reader::read`].
    pub(in crate::data) fn first_rows(
        files: &[PathBuf],
        is_wanted: Wanted,
    ) -> Result<(Arc<Index>, Vec<Row>), DataError> {
        let index = Arc::new(Index::of(files)?);
        let mut reader = Reader::new(index.clone(), is_wanted);
        let rows = reader.read(0..index.records().min(FIRST))?;
        Ok((index, rows))
    }

    pub(in crate::data) fn new(
        index: Arc<Index>,
        schema: Schema,
        is_wanted: Wanted,
        file: Option<MetaFile>,
    ) -> Self {
        Self {
            index,
            schema,
            is_wanted,
            file,
        }
    }

    /// Number of records.
    pub fn records(&self) -> usize {
        self.index.records()
    }

    /// A reader of its rows.
    pub(super) fn reader(&self) -> Reader {
        Reader::new(self.index.clone(), self.is_wanted.clone())
    }

    /// The record of row number `number`, as it would be in a task that is read whole.
    ///
    /// # Errors
    /// As [`load_task`](crate::data::load_task).
    pub(super) fn record(
        &self,
        row: Row,
        number: usize,
        meta: &TaskMeta,
    ) -> Result<Record, DataError> {
        let mut rows = [row];
        rename_all(&mut rows, self.file.as_ref())?;
        let [row] = rows;
        let reading = Reading {
            schema: self.schema,
            meta,
            has_meta_file: self.file.is_some(),
        };
        let columns = reading.columns(&row);
        let mut record = reading.record(row, format!("{}-train-{number}", meta.name), columns)?;
        ask_by_one(&mut record, &meta.name);
        Ok(record)
    }
}
