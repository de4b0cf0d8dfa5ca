"""Clips that say who they are: each sample holds the clip's number and its own place, exactly, in float32."""

import io

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile as sf

import hf_clap

RATE = 16_000
CROP = 800  # samples of the extractor below; the clips have 400 to about 2,000
SHARD_ROWS = (3, 4, 5, 6, 7, 8, 9, 10)
FEATURES = datasets.Features(
    {
        "audio": datasets.Audio(),
        "caption": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["rain", "a dog"]),
    }
)


def extractor(sampling_rate=RATE, **options):
    return hf_clap.HfClapFeatureExtractor(sampling_rate=sampling_rate, max_length_s=CROP / RATE, **options)


def samples_of(number):
    """(samples,) float32"""
    return ((number * 4096 + np.arange(400 + 29 * number)) / 2**22).astype(np.float32)


def encoded(samples, rate=RATE, file_format="WAV", subtype="FLOAT"):
    file = io.BytesIO()
    sf.write(file, samples, rate, format=file_format, subtype=subtype)
    return file.getvalue()


def identify(pair):
    """(number of the clip, its first sample that is there) of a pair, every sample of which is as it was written."""
    number, start = divmod(round(float(pair.audio[0]) * 2**22), 4096)
    np.testing.assert_array_equal(pair.audio, samples_of(number)[start : start + len(pair.audio)])
    return number, start


def numbers(pairs):
    return [identify(pair)[0] for pair in pairs]


def row(number):
    return {"audio": {"bytes": encoded(samples_of(number))}, "caption": f"clip {number}", "label": number % 2}


def write_parquet(path, rows, features=FEATURES):
    """A shard as on the Hub: audio as struct{bytes, path}, the features in the schema."""
    pq.write_table(pa.Table.from_pylist(rows, schema=features.arrow_schema), path, row_group_size=4)


def write_shards(folder, shard_rows=SHARD_ROWS):
    """Shards of so many rows, numbered from 0 on."""
    folder.mkdir(exist_ok=True)
    first = 0
    for shard, rows in enumerate(shard_rows):
        name = f"train-{shard:05d}-of-{len(shard_rows):05d}.parquet"
        write_parquet(folder / name, [row(number) for number in range(first, first + rows)])
        first += rows
    return folder


def assert_same_pairs(pairs, expected):
    pairs = list(pairs)
    assert [pair.caption for pair in pairs] == [pair.caption for pair in expected]
    for pair, same in zip(pairs, expected, strict=True):
        np.testing.assert_array_equal(pair.audio, same.audio)
