"""The made-up world: same seed, same world; and its truth is true of the files it wrote."""

import hashlib
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from catalog.errors import Refused
from catalog.world import GRID, WorldConfig, WorldPaths, make_world, read_masks
from catalog.world.geometry import Choreography
from catalog.world.packaging import draw_packaging, photograph
from catalog.world.panel import draw_counts, draw_sales, followers_of, true_lifts
from catalog.world.patterns import PatternPainter
from catalog.world.render import Renderer
from catalog.world.scene import Presenter, draw_background
from catalog.world.script import Stream, VideoScript, draw_script, stream

SMALL = WorldConfig(seconds=(3.0, 4.5))
VIDEOS = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> WorldPaths:
    return make_world(tmp_path_factory.mktemp("world"), videos=VIDEOS, seed=3, workers=1, config=SMALL)


@pytest.fixture(scope="module")
def scripts() -> list[VideoScript]:
    """Two thousand videos as drawn, none rendered."""
    return [draw_script(WorldConfig(), 0, index) for index in range(2000)]


def truth_rows(world: WorldPaths) -> list[dict]:
    return pq.read_table(world.truth).to_pylist()


def sampled_frames(world: WorldPaths, video_id: str) -> np.ndarray:
    """The first frame at or after second 0, 1, 2, ...: uint8 RGB (seconds, H, W, 3)."""
    frames: list[np.ndarray] = []
    with av.open(str(world.folder / "videos" / f"{video_id}.mp4")) as container:
        for frame in container.decode(video=0):
            if frame.time >= len(frames):
                frames.append(frame.to_ndarray(format="rgb24"))
    return np.stack(frames)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def digests(world: WorldPaths) -> dict[str, str]:
    files = [path for path in sorted(world.folder.rglob("*")) if path.is_file()]
    return {str(p.relative_to(world.folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_same_seed_gives_the_same_bytes_whatever_the_number_of_workers(world: WorldPaths, tmp_path: Path) -> None:
    again = make_world(tmp_path / "again", videos=VIDEOS, seed=3, workers=2, config=SMALL)
    assert digests(again) == digests(world)


def test_a_video_does_not_depend_on_how_many_there_are_but_on_the_seed(world: WorldPaths, tmp_path: Path) -> None:
    fewer = make_world(tmp_path / "fewer", videos=1, seed=3, config=SMALL)
    other = make_world(tmp_path / "other", videos=1, seed=4, config=SMALL)
    first = "videos/v000000.mp4"
    assert digests(fewer)[first] == digests(world)[first] != digests(other)[first]
    assert truth_rows(fewer)[0]["pe_true"] == truth_rows(world)[0]["pe_true"]


def test_a_folder_is_kept_when_it_holds_this_world_and_refused_when_it_holds_another(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path, videos=1, seed=3, config=SMALL)
    written = world.truth.stat().st_mtime_ns
    make_world(tmp_path, videos=1, seed=3, config=SMALL)
    assert world.truth.stat().st_mtime_ns == written
    with pytest.raises(Refused, match="holds another made-up world"):
        make_world(tmp_path, videos=1, seed=4, config=SMALL)


@pytest.mark.parametrize(
    ("settings", "reason"), [({"width": 361}, "even sides"), ({"seconds": (5.0, 2.0)}, "shortest <= longest")]
)
def test_settings_that_make_no_video_are_refused(settings: dict, reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        WorldConfig(**settings)


def test_progress_counts_every_video(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    make_world(
        tmp_path,
        videos=2,
        seed=3,
        workers=1,
        config=SMALL,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 2), (2, 2)]


def test_tables_have_the_contract_s_columns_and_types(world: WorldPaths) -> None:
    videos, products, sales, truth = (
        pq.read_schema(path) for path in (world.videos, world.products, world.sales, world.truth)
    )
    assert videos.field("posted_at").type == pa.timestamp("us", "UTC")
    assert {videos.field(name).type for name in ("likes", "comments", "shares", "views")} == {pa.int64()}
    assert {videos.field(f"{name}_id").type for name in ("video", "product", "creator")} == {pa.string()}
    assert products.field("image_uris").type.value_type == pa.string()
    assert products.field("image_outlines").type.value_type.value_type == pa.float64()
    assert set(sales.names) >= {"product_id", "date", "revenue", "search_index"}
    assert truth.field("product_visible").type.value_type == pa.bool_()
    assert set(truth.names) >= {"video_id", "pe_true", "seconds", "product_share", "element_share"}
    assert set(truth.names) >= {"occluded", "product_quads", "engagement_signal"}


def test_tables_agree_and_every_file_they_name_can_be_read(world: WorldPaths) -> None:
    videos, products = pq.read_table(world.videos).to_pylist(), pq.read_table(world.products).to_pylist()
    known = {row["product_id"] for row in products}
    assert len(videos) == len({row["video_id"] for row in videos}) == VIDEOS
    assert {row["product_id"] for row in videos} - {None} < known
    assert set(pq.read_table(world.sales)["product_id"].to_pylist()) == known
    assert [row["video_id"] for row in truth_rows(world)] == [row["video_id"] for row in videos]
    assert all((world.folder / row["video_uri"]).is_file() for row in videos)
    for row in products:
        for uri in row["image_uris"]:
            assert cv2.imread(str(world.folder / uri)) is not None, uri


def test_videos_are_upright_h264_with_tagged_colours_and_quiet_sound(world: WorldPaths) -> None:
    for row in pq.read_table(world.videos).to_pylist():
        with av.open(str(world.folder / row["video_uri"])) as container:
            picture = container.streams.video[0]
            assert (picture.codec_context.name, picture.width, picture.height) == ("h264", 360, 640)
            assert (picture.codec_context.colorspace, picture.codec_context.color_range) == (1, 1)
            assert picture.frames == round(row["duration_s"] * SMALL.fps)
            sound = np.concatenate([frame.to_ndarray().ravel() for frame in container.decode(audio=0)])
        assert 0.001 < np.sqrt(np.mean(sound**2)) < 0.1
        assert sound.size / 22_050 == pytest.approx(row["duration_s"], abs=0.2)


def test_truth_has_one_entry_for_every_second_that_the_file_reaches(world: WorldPaths) -> None:
    for row in truth_rows(world):
        seconds = len(sampled_frames(world, row["video_id"]))
        lists = ("product_visible", "product_share", "element_share", "occluded", "product_quads")
        assert {row["seconds"], *(len(row[name]) for name in lists)} == {seconds}
        assert read_masks(world.folder, row["video_id"]).product.shape == (seconds, GRID, GRID)


def test_pe_true_and_shares_follow_from_the_masks(world: WorldPaths) -> None:
    for row in truth_rows(world):
        masks, weight = read_masks(world.folder, row["video_id"]), np.array(row["element_weight"])
        element = masks.element.mean((1, 2))
        assert masks.product.mean((1, 2)) == pytest.approx(row["product_share"], abs=0.004)
        assert element == pytest.approx(row["element_share"], abs=0.004)
        assert masks.distractor.mean((1, 2)) == pytest.approx(row["distractor_share"], abs=0.004)
        assert np.mean(element * weight) == pytest.approx(row["engagement_signal"], abs=0.003)
        pe = np.mean((masks.element & masks.product).mean((1, 2)) * weight)
        assert pe == pytest.approx(row["pe_true"], abs=0.002)
        assert not (masks.element & masks.distractor).any()
    assert max(row["pe_true"] for row in truth_rows(world)) > 0.005


def test_quads_outline_the_visible_product(world: WorldPaths) -> None:
    checked = 0
    for row in truth_rows(world):
        masks = read_masks(world.folder, row["video_id"])
        for second, quad in enumerate(row["product_quads"]):
            assert (quad is not None) == row["product_visible"][second] == masks.product[second].any()
            if quad is None or row["occluded"][second]:
                continue
            outline = np.zeros((GRID, GRID), np.uint8)
            cv2.fillPoly(outline, [np.round(np.reshape(quad, (4, 2)) * GRID - 0.5).astype(np.int32)], 1)
            filled, seen = outline.astype(bool), masks.product[second]
            assert (filled & seen).sum() / (filled | seen).sum() > 0.75
            checked += 1
    assert checked >= 5


@pytest.mark.parametrize("kind", ["element", "distractor"])
def test_patterns_are_where_and_when_the_masks_say(world: WorldPaths, kind: str) -> None:
    """Pixels of the decoded second have the pattern's hues inside its mask far more than just outside it."""
    inside, outside = [], []
    for row in truth_rows(world):
        masks = getattr(read_masks(world.folder, row["video_id"]), kind)
        for frame, mask in zip(sampled_frames(world, row["video_id"]), masks, strict=True):
            small = cv2.resize(frame, (GRID, GRID), interpolation=cv2.INTER_AREA).astype(int)
            red, green, blue = np.moveaxis(small, -1, 0)
            warm = red - np.minimum(green, blue) if kind == "element" else np.maximum(green, blue) - red
            if 0.01 < mask.mean() < 0.5:
                ring = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool) & ~mask
                inside.append(warm[mask].mean())
                outside.append(warm[ring].mean())
    assert len(inside) >= 5
    assert np.mean(np.array(inside) > np.array(outside) + 10) > 0.9


def test_the_catalogue_photo_matches_the_product_in_the_video(world: WorldPaths) -> None:
    """An unoccluded product of 5% of the frame or more maps onto its true quad by plain SIFT matching."""
    videos = {row["video_id"]: row for row in pq.read_table(world.videos).to_pylist()}
    sift, errors = cv2.SIFT.create(), []
    for row in truth_rows(world):
        product = videos[row["video_id"]]["product_id"]
        best = int(np.argmax(np.array(row["product_share"]) * ~np.array(row["occluded"])))
        if product is None or row["product_share"][best] < 0.05:
            continue
        packaging = draw_packaging(3, int(product[1:]))
        height, width = packaging.shape[:2]
        frame = sampled_frames(world, row["video_id"])[best]
        photo_points, photo_features = sift.detectAndCompute(cv2.cvtColor(packaging, cv2.COLOR_RGB2GRAY), None)
        points, features = sift.detectAndCompute(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), None)
        pairs = cv2.BFMatcher().knnMatch(photo_features, features, k=2)
        good = [first for first, second in pairs if first.distance < 0.75 * second.distance]
        source = np.array([photo_points[match.queryIdx].pt for match in good])
        target = np.array([points[match.trainIdx].pt for match in good])
        warp, _ = cv2.findHomography(source, target, cv2.USAC_MAGSAC, 4.0)
        corners = np.array([[[0, 0], [width, 0], [width, height], [0, height]]], np.float64)
        quad = np.reshape(row["product_quads"][best], (4, 2)) * (SMALL.width, SMALL.height)
        errors.append(np.abs(cv2.perspectiveTransform(corners, warp)[0] - quad).max())
    assert len(errors) >= 3
    assert np.median(errors) < 6


def test_photos_outline_their_packaging() -> None:
    packaging, styles = draw_packaging(0, 5), set()
    for seed in range(12):
        photo = photograph(packaging, np.random.default_rng(seed))
        (left, top), (right, bottom) = np.reshape(photo.outline, (4, 2))[[0, 2]].astype(int)
        assert np.array_equal(photo.pixels[top:bottom, left:right, :3], packaging)
        styles.add((photo.suffix, left > 0))
    assert styles == {(".jpg", True), (".jpg", False), (".png", True)}


def test_products_look_different_but_families_share_a_base() -> None:
    packs = [draw_packaging(0, index) for index in range(4)]
    assert packs[0].shape == packs[1].shape
    assert len({pack.tobytes() for pack in packs}) == 4


def test_overlap_and_presence_are_independent_of_how_engaging_the_video_is(
    scripts: list[VideoScript],
) -> None:
    amount = np.array([script.element.amount for script in scripts])
    for planted in (
        [script.element.on_product for script in scripts],
        [script.placement.share for script in scripts],
        [script.placement.window.fraction for script in scripts],
        [script.distractor.amount for script in scripts],
        [script.distractor.on_product for script in scripts],
    ):
        assert abs(np.corrcoef(amount, planted)[0, 1]) < 0.07
    overlap = np.array([script.element.on_product for script in scripts])
    assert 0.04 < np.mean(overlap == 0) < 0.09
    assert 0.26 < np.mean(overlap == 1) < 0.34


def test_full_overlap_is_full_in_the_pixels_however_engaging_the_video_is(scripts: list[VideoScript]) -> None:
    """One frame each of videos whose element is planted wholly on the product: all of it is there, and as large."""
    config, seen = WorldConfig(), []
    for script in [s for s in scripts if s.element.on_product == 1 and s.element.amount > 0][:30]:
        renderer = Renderer(script, 0, config)
        stage, element = renderer.stage, script.element
        shown = [
            frame
            for frame in script.samples(config.fps)
            if stage.product_on(frame) and not stage.occluded_on(frame) and stage.wheels(element, frame, toward=-1)
        ]
        if not shown:
            continue
        look = stream(0, Stream.LOOK, script.index)
        painters = {
            "element": PatternPainter("element", element, element.weights[0]),
            "distractor": PatternPainter("distractor", script.distractor, script.distractor.weights[0]),
        }
        renderer.draw(shown[0], draw_background(config, look), Presenter(config, look), painters)
        truth = renderer.truth[0]
        assert not (truth.element & ~truth.product).any()
        seen.append((element.share_when_on, truth.element.mean()))
    planted, drawn = np.array(seen).T
    assert len(seen) >= 15
    assert np.corrcoef(planted, drawn)[0, 1] > 0.95
    assert np.mean(drawn / planted) == pytest.approx(1, abs=0.1)


def test_element_without_overlap_stays_off_the_product(scripts: list[VideoScript]) -> None:
    config, apart = WorldConfig(), [s for s in scripts if s.element.on_product == 0 and s.element.amount > 0]
    touching = 0
    for script in apart:
        stage = Choreography(script, 0.8, config)
        for frame in script.samples(config.fps):
            quad = stage.product_quad(frame).astype(np.float32)
            for wheel in stage.wheels(script.element, frame, toward=-1):
                gap = -cv2.pointPolygonTest(quad, (wheel.x, wheel.y), True)
                touching += gap < wheel.radius
    assert len(apart) > 80
    assert touching == 0


def test_signal_and_reach_make_the_counts_and_signal_dominates(scripts: list[VideoScript]) -> None:
    config = WorldConfig()
    signal = np.array([script.element.amount for script in scripts])
    counts = [
        draw_counts(config, 0, script, followers_of(0, script.creator), amount)
        for script, amount in zip(scripts, signal.tolist(), strict=True)
    ]
    assert 0.8 < rank_correlation(signal, np.array([count.shares for count in counts])) < 0.92
    assert 0.7 < rank_correlation(signal, np.array([count.comments for count in counts])) < 0.92
    assert abs(rank_correlation(signal, np.array([count.views for count in counts]))) < 0.1
    assert all(0 <= count.likes <= count.views for count in counts)
    distractor = np.array([script.distractor.amount for script in scripts])
    assert abs(rank_correlation(distractor, np.array([count.shares for count in counts]))) < 0.1


def test_creators_and_products_have_several_and_few_videos(scripts: list[VideoScript]) -> None:
    by_creator = np.bincount([script.creator for script in scripts])
    by_product = np.bincount([script.product for script in scripts if script.product is not None])
    assert by_creator[:-1].min() == 6
    assert by_product.max() == 2
    assert 0.01 < np.mean([script.product is None for script in scripts]) < 0.04


def test_the_null_sales_are_the_same_panel_less_what_pe_made(world: WorldPaths) -> None:
    sales, null = (pq.read_table(path).to_pandas() for path in (world.sales, world.null_sales))
    keys = ["product_id", "date", "search_index"]
    assert sales[keys].equals(null[keys])
    posted = pq.read_table(world.videos).to_pandas().groupby("product_id")["posted_at"].min().dt.date
    treated = sales["product_id"].map(posted)
    before = treated.isna() | (sales["date"] <= treated)
    assert sales["revenue"][before].equals(null["revenue"][before])
    assert not np.allclose(sales["revenue"][~before], null["revenue"][~before])


@pytest.mark.parametrize("effect", [True, False])
def test_the_panel_shows_the_planted_lift_and_none_in_the_null_world(scripts: list[VideoScript], effect: bool) -> None:
    """Difference of 30-day means round the post, less the same for a control: regressed on PE."""
    config, pe = WorldConfig(), np.random.default_rng(0).gamma(1.0, 0.02, 300)
    lifts = true_lifts(config, 0, range(300), pe, effect=effect)
    control = draw_sales(config, 0, 999_999).revenue
    seen = []
    for index, lift in enumerate(lifts.tolist()):
        day = int(scripts[index].posted_at_s // 86_400)
        gap = draw_sales(config, 0, index, lift=lift, post_day=day).revenue - control
        seen.append(gap[day + 1 : day + 31].mean() - gap[day - 30 : day].mean())
    slope, spread = np.polyfit((pe - pe.mean()) / pe.std(), seen, 1), np.std(seen) / np.sqrt(300)
    if effect:
        assert slope[0] == pytest.approx(config.lift_effect, abs=3 * spread)
    else:
        assert abs(slope[0]) < 3 * spread
