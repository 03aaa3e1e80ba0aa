"""What jobs.check_products does."""

import collections
import io
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data

from catalog import storage
from catalog.actors import RESTARTS
from catalog.errors import Refused, VideoError, check_positive
from catalog.isolation import IsolatedWorker
from catalog.tables import read_products
from jobs.check_products import CheckProductsConfig
from jobs.command import DONE, TOO_MANY_FAILED, ProgressLog, StallWatch, console, print_config, ray_cluster, resolved
from scoring.plan import images_of
from scoring.prepare import Request
from scoring.product_check import ImageReport

EXAMPLES = 10
BLOCK_ROWS = 64
MEMORY_LIMIT_BYTES = 4 << 30
START_S = 600.0

REPORT = pa.schema(
    [
        pa.field("product_id", pa.string(), nullable=False, metadata={"description": "as given"}),
        pa.field("image_uri", pa.string(), nullable=False, metadata={"description": "as given, absolute"}),
        pa.field("localisable", pa.bool_(), nullable=False, metadata={"description": "can be looked for in videos"}),
        pa.field("features", pa.int32(), nullable=False, metadata={"description": "what there is to match"}),
        pa.field("problem", pa.string(), metadata={"description": "why it is not localisable, and what to do"}),
        pa.field("content", pa.string(), metadata={"description": "digest of the file"}),
        pa.field("same_as", pa.string(), metadata={"description": "another product with the same image"}),
    ]
)


def main(config: CheckProductsConfig) -> int:
    print_config(resolved(config))
    check_positive({"--image-timeout": config.image_timeout})
    if not 0 <= config.max_unlocalisable_fraction <= 1:
        raise Refused(
            f"--max-unlocalisable-fraction is {config.max_unlocalisable_fraction}, expected a number from 0 to 1"
        )
    if not config.output.endswith(".parquet"):
        raise Refused(f"--output {config.output}: expected a name that ends in .parquet")
    products, output = read_products(config.products), storage.absolute(config.output)
    storage.check_writable(output.rpartition("/")[0])
    cache = None if config.product_cache is None else storage.absolute(config.product_cache)
    if cache is not None:
        storage.check_writable(cache)
    images = images_of(products)
    if not images:
        raise Refused(f"{config.products} has no products; give a table that has")
    with ray_cluster() as cluster, StallWatch(START_S + BLOCK_ROWS * config.image_timeout) as watch:
        progress, rows = ProgressLog("checking", len(images)), []
        try:
            for done in _checked(images, cache, config.image_timeout, max(1, int(cluster["CPU"]))):
                rows += done
                watch.alive()
                progress.update(len({row["product_id"] for row in rows}))
        finally:
            progress.close()
    rows = _with_doubles(sorted(rows, key=lambda row: (row["product_id"], row["image_uri"])))
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=REPORT), sink, compression="zstd")
    storage.write_bytes_atomically(output, sink.getvalue())
    return _said(rows, config, output)


def _checked(images: dict, cache: str | None, timeout_s: float, actors: int) -> Iterator[list[dict[str, Any]]]:
    """product_id -> images and outlines; a block's rows of REPORT at a time."""
    products = pa.table({"product_id": sorted(images)})
    blocks = [products.slice(start, BLOCK_ROWS) for start in range(0, products.num_rows, BLOCK_ROWS)]
    graph = ray.data.from_arrow(blocks).map_batches(
        _CheckActor,
        fn_constructor_args=([ray.put(images)], cache, timeout_s),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(blocks))),
        **RESTARTS,
    )
    for batch in graph.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield batch.to_pylist()  # pyright: ignore


class _CheckActor:
    """CHECK on one core: every product's images in a supervised child process."""

    def __init__(self, images: list[ray.ObjectRef], cache: str | None, timeout_s: float):
        (self.images,) = ray.get(images)
        self.timeout_s = timeout_s
        self.child = IsolatedWorker("scoring.product_check:make_check", (cache,), MEMORY_LIMIT_BYTES)

    def __call__(self, products: pa.Table) -> pa.Table:
        rows = [
            {"product_id": product_id, **vars(report)}
            for product_id in products["product_id"].to_pylist()
            for report in self._reports(product_id)
        ]
        return pa.Table.from_pylist(rows, schema=REPORT)

    def _reports(self, product_id: str) -> list[ImageReport]:
        uris, outlines = self.images[product_id]
        try:
            return self.child.call(Request("", product_id, uris, outlines), self.timeout_s)
        except VideoError as error:
            return [ImageReport(uri, False, 0, f"{error.code}: {error.message}", None) for uri in uris]


def _with_doubles(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    owners: dict[str, dict[str, None]] = collections.defaultdict(dict)
    for row in rows:
        if row["content"]:
            owners[row["content"]][row["product_id"]] = None
    for row in rows:
        row["same_as"] = next((p for p in owners.get(row["content"], ()) if p != row["product_id"]), None)
    return rows


def _said(rows: list[dict[str, Any]], config: CheckProductsConfig, output: str) -> int:
    products = {row["product_id"] for row in rows}
    lost = sorted(products - {row["product_id"] for row in rows if row["localisable"]})
    bad = [row for row in rows if not row["localisable"]]
    doubles = [row for row in rows if row["same_as"]]
    for row in bad[:EXAMPLES]:
        console.print(f"replace {row['product_id']}: {row['image_uri']}: {row['problem']}")
    for row in doubles[:EXAMPLES]:
        console.print(f"warning: {row['product_id']} has the same image as {row['same_as']}: {row['image_uri']}")
    console.print(
        f"{len(products)} products, {len(rows)} images: {len(lost)} products cannot be looked for, {len(bad)} images "
        f"should be replaced, {len(doubles)} belong to several products\nreport: {output}"
    )
    return TOO_MANY_FAILED if len(lost) > config.max_unlocalisable_fraction * len(products) else DONE
