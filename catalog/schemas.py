"""The tables' columns, types and meanings in one place: ``field.metadata[b"description"]``.

A field that is not nullable must hold a value in every row.
"""

from enum import StrEnum

import pyarrow as pa


class Status(StrEnum):
    """``status`` of the scores table: what became of a video."""

    OK = "ok"
    NOT_LOCALISED = "not_localised"
    NO_PRODUCT = "no_product"
    FAILED = "failed"


_UTC = pa.timestamp("us", tz="UTC")
_PER_SECOND = pa.list_(pa.float32())
_QUADS = pa.list_(pa.list_(pa.float32()))


def _column(name: str, kind: pa.DataType, description: str, required: bool = False) -> pa.Field:
    return pa.field(name, kind, nullable=not required, metadata={"description": description})


VIDEOS = pa.schema(
    [
        _column("video_id", pa.string(), "names the video; unique in the table", required=True),
        _column("video_uri", pa.string(), "path or file/s3/gs URI, relative to the table", required=True),
        _column("product_id", pa.string(), "the advertised product; null: none"),
        _column("creator_id", pa.string(), "who posted it"),
        _column("posted_at", _UTC, "when it was posted; a time without a zone is UTC"),
        _column("likes", pa.int64(), "count, null where unknown"),
        _column("comments", pa.int64(), "count, null where unknown"),
        _column("shares", pa.int64(), "count, null where unknown"),
        _column("views", pa.int64(), "count, null where unknown"),
    ]
)

PRODUCTS = pa.schema(
    [
        _column("product_id", pa.string(), "names the product; unique in the table", required=True),
        _column("image_uris", pa.list_(pa.string()), "one or more images, as video_uri", required=True),
        _column(
            "image_outlines",
            pa.list_(pa.list_(pa.float64())),
            "per image the product's polygon x1,y1,x2,y2,... in the image's pixels; null: the whole image"
            " less a plain or transparent background",
        ),
        _column("title", pa.string(), "shown in reports"),
        _column("category", pa.string(), "shown in reports"),
        _column("price", pa.float64(), "in the catalogue's currency"),
    ]
)

SALES = pa.schema(
    [
        _column("product_id", pa.string(), "the product sold", required=True),
        _column("date", pa.date32(), "the day, in UTC; one row a product and day", required=True),
        _column("revenue", pa.float64(), "of that day"),
        _column("revenue_30d", pa.float64(), "rolling sum of the 30 days that end with that day"),
        _column("search_index", pa.float64(), "how much the product was searched for"),
    ]
)

SCORES = pa.schema(
    [
        _column("video_id", pa.string(), "as given", required=True),
        _column("product_id", pa.string(), "as given"),
        _column(
            "status",
            pa.string(),
            "ok: product located in at least one second; not_localised: looked, not found, PE is 0;"
            " no_product: product_id is null, P and PE are null; failed: could not look, scores are null",
            required=True,
        ),
        _column("error_code", pa.string(), "one of catalog.errors.ErrorCode; null unless failed"),
        _column("error_message", pa.string(), "the reason in words; null unless failed"),
        _column("error_stage", pa.string(), "one of catalog.errors.Stage; null unless failed"),
        _column("pe_score", pa.float64(), "mean of E*P over all pixels and seconds; E min-max scaled a video"),
        _column("e_score", pa.float64(), "mean of E over all pixels and seconds; E min-max scaled a video"),
        _column("p_score", pa.float64(), "mean of P: the product's share of all pixels and seconds"),
        _column("pe_score_raw", pa.float64(), "pe_score with unscaled E"),
        _column("e_score_raw", pa.float64(), "e_score with unscaled E"),
        _column("e_on_product", pa.float64(), "mean of E over product pixels; null without any"),
        _column("seconds", pa.int32(), "sampled seconds"),
        _column("fps", pa.float64(), "frames per second of the video stream"),
        _column("width", pa.int32(), "pixels, upright"),
        _column("height", pa.int32(), "pixels, upright"),
        _column("duration_s", pa.float64(), "of the file, sound included"),
        _column("codec", pa.string(), "of the video stream"),
        _column("pe_per_second", _PER_SECOND, "mean of E*P, one value a sampled second"),
        _column("e_per_second", _PER_SECOND, "mean of E, one value a sampled second"),
        _column("p_per_second", _PER_SECOND, "mean of P, one value a sampled second"),
        _column(
            "product_quads",
            _QUADS,
            "per second the corners x1,y1,...,x4,y4 of the smallest rectangle round the product's outline, in fractions"
            " of the upright frame, then those of its copies in the same frame, 8 numbers each; null: not found. P is"
            " the outline itself, which for a product that is not rectangular is smaller",
        ),
        _column("product_inliers", pa.list_(pa.int32()), "per second the matches behind the first quad"),
        _column(
            "product_probability",
            _PER_SECOND,
            "per second that the first quad is the product and no look-alike, by that second alone; 0 without a quad,"
            " null with --product-method hull",
        ),
        _column("predicted_engagement", pa.float64(), "the model's output"),
        _column("fingerprint", pa.string(), "of the files of the video and its product's images; null: not to be had"),
        _column("model_uri", pa.string(), "the model as asked for"),
        _column("model_version", pa.string(), "the registered version it resolved to"),
        _column("run_id", pa.string(), "MLflow run of the scoring job"),
        _column("config_hash", pa.string(), "of everything that changes a score"),
        _column("scored_at", _UTC, "when the row was made"),
        _column("code_version", pa.string(), "of this project"),
    ]
)

MAPS = pa.schema(
    [
        _column("video_id", pa.string(), "as given", required=True),
        _column("e_uint8", pa.large_binary(), "E as uint8, seconds x height x width, C order", required=True),
        _column("e_min", pa.float32(), "raw E = e_min + e_uint8 / 255 * (e_max - e_min)", required=True),
        _column("e_max", pa.float32(), "raw E at 255", required=True),
        _column("seconds", pa.int32(), "first axis of e_uint8", required=True),
        _column("height", pa.int32(), "second axis of e_uint8, grid cells", required=True),
        _column("width", pa.int32(), "third axis of e_uint8, grid cells", required=True),
        _column("product_quads", _QUADS, "as in the scores table"),
    ]
)

LIFTS = pa.schema(
    [
        _column("video_id", pa.string(), "the first video of a product", required=True),
        _column("product_id", pa.string(), "as given", required=True),
        _column("post_day", pa.date32(), "the product is treated from the day after", required=True),
        _column("lift", pa.float64(), "revenue a day after the post beside what controls say", required=True),
        _column("se", pa.float64(), "clustered by product and day, as published: leaves the product's own noise out"),
        _column("p_cluster", pa.float64(), "of lift / se; null where the clustered variance is negative"),
        _column("se_hac", pa.float64(), "Newey-West, of the product's gap to its controls", required=True),
        _column("p_permutation", pa.float64(), "share of controls with as large a lift / se_hac", required=True),
        _column("ci_low", pa.float64(), "95% by that permutation", required=True),
        _column("ci_high", pa.float64(), "95% by that permutation", required=True),
        _column("n_controls", pa.int64(), "products that it is compared with", required=True),
        _column("n_pre", pa.int64(), "days before treatment", required=True),
        _column("n_post", pa.int64(), "days from treatment on", required=True),
        _column("pretrend_p", pa.float64(), "share of controls that drift as much before that day", required=True),
    ]
)

STAGE_TWO = pa.schema(
    [
        _column("estimator", pa.string(), "as analysis.stage_two names it", required=True),
        _column("column", pa.string(), "which of the published columns", required=True),
        _column("term", pa.string(), "PE, E, P, ExP (scaled to 0..1 over the panel), a control, const", required=True),
        _column(
            "estimate", pa.float64(), "revenue a day a unit of the term; Spearman's is a correlation", required=True
        ),
        _column("se", pa.float64(), "null where the estimator has none"),
        _column("ci_low", pa.float64(), "95%", required=True),
        _column("ci_high", pa.float64(), "95%", required=True),
        _column("p", pa.float64(), "null where the estimator has none"),
        _column("n", pa.int64(), "lifts", required=True),
        _column("r2", pa.float64(), "of least squares"),
    ]
)
