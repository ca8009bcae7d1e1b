//! Where the records of a split lie, so that any of them can be read without those before it.

use std::path::{Path, PathBuf};

use super::super::error::DataError;
use super::{Format, FormatError, jsonl, parquet};

/// Records from which a file can be read on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// Number of the file.
    pub(super) file: usize,
    /// The first byte of JSON lines, or the number of a row group of Parquet.
    pub(super) at: u64,
    /// Number of its first record in the split, from 0.
    pub(super) first: usize,
    /// Number of its first record in the file, from 0.
    pub(super) row: usize,
}

/// The records of the files of a split by their numbers, found by one pass that holds none of them: 32 bytes for
/// each 1024 JSON lines, or for each row group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) struct Index {
    files: Vec<(PathBuf, Format)>,
    blocks: Vec<Block>,
    records: usize,
}

impl Index {
    /// Goes through files that follow each other.
    ///
    /// # Errors
    /// A format that is read as a whole only, a file without records, or one that is broken.
    pub(in super::super) fn of(files: &[PathBuf]) -> Result<Self, DataError> {
        let mut index = Self {
            files: Vec::new(),
            blocks: Vec::new(),
            records: 0,
        };
        for path in files {
            let format = Format::of(path)?;
            index.add(path, format)?;
        }
        Ok(index)
    }

    fn add(&mut self, path: &Path, format: Format) -> Result<(), DataError> {
        let pieces: Vec<(u64, usize)> = match format {
            Format::Jsonl => jsonl::pieces(path)?,
            Format::Parquet => {
                let groups = parquet::row_groups(path)?;
                (0..).zip(groups).collect()
            }
            Format::Json | Format::Csv => {
                return Err(FormatError::NotByPieces { path: path.into() }.into());
            }
        };
        let before = self.records;
        for (at, records) in pieces {
            if records > 0 {
                self.blocks.push(Block {
                    file: self.files.len(),
                    at,
                    first: self.records,
                    row: self.records - before,
                });
            }
            self.records += records;
        }
        if self.records == before {
            return Err(DataError::EmptySplit { path: path.into() });
        }
        self.files.push((path.into(), format));
        Ok(())
    }

    /// Number of records of all files.
    pub(in super::super) fn records(&self) -> usize {
        self.records
    }

    /// The files, in order.
    pub(super) fn file(&self, number: usize) -> &(PathBuf, Format) {
        &self.files[number]
    }

    /// The block that holds a record.
    pub(super) fn block(&self, record: usize) -> &Block {
        let behind = self.blocks.partition_point(|block| block.first <= record);
        &self.blocks[behind - 1]
    }

    /// The number behind that of a file's last record.
    pub(super) fn end_of(&self, file: usize) -> usize {
        let next = self.blocks.partition_point(|block| block.file <= file);
        self.blocks
            .get(next)
            .map_or(self.records, |block| block.first)
    }
}
