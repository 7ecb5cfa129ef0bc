//! Records as a Parquet file: row groups of bounded size, written as they fill.

use std::{collections::BTreeMap, io::Write, sync::Arc};

use anyhow::Context as _;
use bytes::Bytes;
use jiff::Timestamp;
use parquet::{
    basic::{Compression, ZstdLevel},
    data_type::{ByteArray, ByteArrayType, Int64Type},
    file::{
        properties::{EnabledStatistics, WriterProperties},
        writer::{SerializedFileWriter, SerializedRowGroupWriter},
    },
    schema::{parser::parse_message_type, types::ColumnPath},
};

use super::fetch::Line;

/// Records of a row group, and bytes of them.
const GROUP_RECORDS: usize = 128 << 10;
const GROUP_BYTES: usize = 32 << 20;

/// A sequence is never near the end of its range, so that its bits are also those of a signed number.
const SCHEMA: &str = "message record {
    required binary node (UTF8);
    required binary site (UTF8);
    required binary stream (UTF8);
    required int64 epoch (INTEGER(64,false));
    required int64 sequence (INTEGER(64,false));
    required int64 time (TIMESTAMP(MILLIS,true));
    required binary record;
}";

/// Writes one file.
pub(super) struct ParquetFile<W: Write + Send> {
    writer: SerializedFileWriter<W>,
    group: Group,
    /// Names that came up, so that a million rows share one.
    names: BTreeMap<String, ByteArray>,
}

/// Rows that are not written yet, by column.
#[derive(Default)]
struct Group {
    names: [Vec<ByteArray>; 3],
    numbers: [Vec<i64>; 3],
    records: Vec<ByteArray>,
    bytes: usize,
}

impl<W: Write + Send> ParquetFile<W> {
    /// Begins a file.
    pub(super) fn new(out: W) -> anyhow::Result<ParquetFile<W>> {
        let record = || ColumnPath::from("record");
        let properties = WriterProperties::builder()
            .set_created_by(format!("crossdock {}", proto::VERSION))
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(3)?))
            .set_column_dictionary_enabled(record(), false)
            .set_column_statistics_enabled(record(), EnabledStatistics::None)
            .build();
        let schema = Arc::new(parse_message_type(SCHEMA)?);
        let writer = SerializedFileWriter::new(out, schema, Arc::new(properties))?;
        Ok(ParquetFile { writer, group: Group::default(), names: BTreeMap::new() })
    }

    /// Adds a record.
    pub(super) fn push(&mut self, line: &Line<'_>) -> anyhow::Result<()> {
        let time: Timestamp = line.time.parse().context("read a record's time")?;
        let record = line.bytes()?;
        let named = [&line.node, &line.site, &line.stream].map(|name| self.name(name));
        let group = &mut self.group;
        for (column, name) in group.names.iter_mut().zip(named) {
            column.push(name);
        }
        let numbers = [line.epoch.cast_signed(), line.sequence.cast_signed(), time.as_millisecond()];
        for (column, number) in group.numbers.iter_mut().zip(numbers) {
            column.push(number);
        }
        group.bytes += record.len();
        group.records.push(ByteArray::from(Bytes::from(record)));
        if group.records.len() >= GROUP_RECORDS || group.bytes >= GROUP_BYTES { self.write_group() } else { Ok(()) }
    }

    fn name(&mut self, name: &str) -> ByteArray {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        let array = ByteArray::from(name);
        self.names.insert(name.to_owned(), array.clone());
        array
    }

    fn write_group(&mut self) -> anyhow::Result<()> {
        let group = std::mem::take(&mut self.group);
        if group.records.is_empty() {
            return Ok(());
        }
        let mut writer = self.writer.next_row_group()?;
        for names in &group.names {
            column::<_, ByteArrayType>(&mut writer, names)?;
        }
        for numbers in &group.numbers {
            column::<_, Int64Type>(&mut writer, numbers)?;
        }
        column::<_, ByteArrayType>(&mut writer, &group.records)?;
        writer.close()?;
        Ok(())
    }

    /// Writes what is left, and the end.
    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.write_group()?;
        self.writer.finish()?;
        Ok(())
    }
}

fn column<W: Write + Send, T: parquet::data_type::DataType>(
    group: &mut SerializedRowGroupWriter<'_, W>,
    values: &[T::T],
) -> anyhow::Result<()> {
    let mut writer = group.next_column()?.context("the schema has fewer columns than are written")?;
    writer.typed::<T>().write_batch(values, None, None)?;
    writer.close()?;
    Ok(())
}
