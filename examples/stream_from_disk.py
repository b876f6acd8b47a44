"""
Stream a table from disk
========================

Stream a file of texts, categories and numbers into partial_fit: one pass, a chunk of rows in memory at a time. Needs
pandas and matplotlib. Reads Parquet where pyarrow is installed, else CSV. ``pip install "softreg[progress]"`` adds a
progress bar.
"""

import importlib.util
import tempfile
from contextlib import contextmanager
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.compose import make_column_transformer
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.preprocessing import OneHotEncoder

from softreg import SoftmaxRegression
from softreg.inspection import LossCurveDisplay

CHUNKS, ROWS = 40, 1000  # the last ten chunks are for the test
QUEUES = ["billing", "delivery", "login", "returns", "sales"]
COUNTRIES = ["AT", "BR", "CA", "DE", "IN", "JP"]


def generated_chunks():
    """Yield chunks of support requests: a text, a country, an amount of money, and the queue that they belong to."""
    rng = np.random.default_rng(0)
    words = np.array([f"word{i}" for i in range(5000)])
    topics = rng.dirichlet(np.full(len(words), 0.1), size=len(QUEUES))
    habits = rng.dirichlet(np.ones(len(COUNTRIES)), size=len(QUEUES))
    common = topics.mean(axis=0)
    for _ in range(CHUNKS):
        queue = rng.integers(len(QUEUES), size=ROWS)
        yield pd.DataFrame({
            "text": [" ".join(rng.choice(words, size=12, p=0.8 * common + 0.2 * topics[k])) for k in queue],
            "country": [rng.choice(COUNTRIES, p=habits[k]) for k in queue],
            "amount": np.round(rng.lognormal(3 + queue, 1.0), 2),
            "queue": np.array(QUEUES)[queue],
        })  # fmt: skip


def write(folder):
    """Write the chunks to a file, one at a time; return its path."""
    if importlib.util.find_spec("pyarrow"):
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        path, writer = folder / "requests.parquet", None
        for chunk in generated_chunks():
            table = pa.Table.from_pandas(chunk)
            writer = writer or ParquetWriter(path, table.schema)
            writer.write_table(table)
        writer.close()
    else:
        path = folder / "requests.csv"
        for i, chunk in enumerate(generated_chunks()):
            chunk.to_csv(path, mode="a", header=i == 0, index=False)
    return path


def read(path):
    """Yield the chunks of a file as data frames."""
    if path.suffix == ".parquet":
        from pyarrow.parquet import ParquetFile

        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROWS):
                yield batch.to_pandas()
    else:
        with pd.read_csv(path, chunksize=ROWS) as reader:
            yield from reader


@contextmanager
def progress(total):
    """Give a function that shows a text after each chunk: beside a progress bar, or as a line if rich is missing."""
    try:
        from rich.progress import Progress
    except ImportError:
        yield print
        return
    with Progress() as bar:
        task = bar.add_task("", total=total)
        yield lambda text: bar.update(task, advance=1, description=text)


# %%
# No step needs to see the data first: words are hashed, categories are listed, and softreg takes numbers unscaled.
features = make_column_transformer(
    (HashingVectorizer(n_features=2**18), "text"),
    (OneHotEncoder(categories=[COUNTRIES], handle_unknown="ignore"), ["country"]),
    ("passthrough", ["amount"]),
    sparse_threshold=1.0,
)

with tempfile.TemporaryDirectory() as folder:
    path = write(Path(folder))
    print(f"{path.name}: {CHUNKS * ROWS:,} rows, {path.stat().st_size / 1e6:.1f} MB")

    stream, kept, held_out = SoftmaxRegression(random_state=0), [], []
    with progress(CHUNKS - 10) as show:
        for i, chunk in enumerate(read(path)):
            X = features.transform(chunk) if i else features.fit_transform(chunk)
            if i >= CHUNKS - 10:
                held_out.append((X, chunk["queue"]))
                continue
            kept.append((X, chunk["queue"]))  # for the whole fit alone
            stream.partial_fit(X, chunk["queue"], classes=QUEUES)
            history = stream.stream_history_  # each chunk was predicted before it was learnt
            show(f"{history['rows'][-1]:6,} rows, accuracy {history['accuracy'][-1]:.1%}")

rows = np.diff(history["rows"], prepend=0)
accuracy, loss = (np.average(history[name], weights=rows) for name in ("accuracy", "loss"))
print(f"while it learnt: accuracy {accuracy:.1%}, log loss {loss:.3f}; of the last chunk "
      f"{history['accuracy'][-1]:.1%}, {history['loss'][-1]:.3f}")

LossCurveDisplay.from_estimator(stream, metric="accuracy")
plt.show()

# %%
# The same rows, all in memory.
(X, y), (X_test, y_test) = (
    (sparse.vstack([X for X, _ in part], format="csr"), pd.concat([y for _, y in part])) for part in (kept, held_out)
)
whole = SoftmaxRegression(random_state=0).fit(X, y)
print(f"on the test rows: stream {stream.score(X_test, y_test):.1%} after one pass, whole fit "
      f"{whole.score(X_test, y_test):.1%} after {whole.history_['passes'][-1]:.0f} passes over rows in memory")
