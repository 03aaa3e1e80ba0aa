"""jobs.check_products on a real local Ray: which images can be looked for, and which should be replaced."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mixed_catalogue import ROOT, write_strange_card

from catalog.errors import Refused
from jobs.check_products import CheckProductsConfig, main
from scoring.prepare import Request
from scoring.product_check import make_check

pytestmark = pytest.mark.timeout(300)


def write_table(folder: Path, products: dict[str, list[str]]) -> str:
    rows = [{"product_id": product, "image_uris": images} for product, images in products.items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "products.parquet")
    return f"{folder}/products.parquet"


def test_every_image_is_a_row_with_what_to_do_about_it(tmp_path: Path):
    write_strange_card(tmp_path / "card.png")
    cv2.imwrite(str(tmp_path / "blank.png"), np.full((200, 200, 3), 255, np.uint8))
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    products = write_table(
        tmp_path,
        {"good": ["card.png"], "same": ["card.png", "blank.png"], "lost": ["page.jpg", "absent.png"]},
    )
    command = [
        sys.executable, "-m", "jobs.check_products", "--products", products, "--output", f"{tmp_path}/report.parquet",
        "--product-cache", f"{tmp_path}/views", "--max-unlocalisable-fraction", "0.2",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    rows = pq.read_table(tmp_path / "report.parquet").to_pylist()
    report = {(row["product_id"], Path(row["image_uri"]).name): row for row in rows}
    assert {key: row["localisable"] for key, row in report.items()} == {
        ("good", "card.png"): True,
        ("same", "card.png"): True,
        ("same", "blank.png"): False,
        ("lost", "page.jpg"): False,
        ("lost", "absent.png"): False,
    }
    assert report["good", "card.png"]["features"] >= 16
    assert (report["good", "card.png"]["same_as"], report["same", "card.png"]["same_as"]) == ("same", "good")
    assert "sharp photo" in report["same", "blank.png"]["problem"]
    assert "not an image" in report["lost", "page.jpg"]["problem"]
    assert "no such file" in report["lost", "absent.png"]["problem"]
    assert "3 products, 5 images: 1 products cannot be looked for, 3 images should be replaced" in done.stdout
    assert "good has the same image as same" in done.stdout
    assert len(list((tmp_path / "views").iterdir())) == 1


def test_the_outline_of_a_photo_counts(tmp_path: Path):
    write_strange_card(tmp_path / "card.png")
    image = f"{tmp_path}/card.png"
    whole, corner = make_check(None)(Request("", "p", (image, image), (None, (0.0, 0, 6, 0, 6, 6, 0, 6))))
    assert whole.localisable
    assert not corner.localisable


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"output": "report.csv"}, "ends in .parquet"),
        ({"image_timeout": 0.0}, "--image-timeout"),
        ({"max_unlocalisable_fraction": 1.5}, "--max-unlocalisable-fraction is 1.5"),
        ({"products": "nowhere.parquet"}, "nowhere.parquet"),
    ],
)
def test_what_cannot_be_meant_is_refused(tmp_path: Path, changed: dict, message: str):
    write_strange_card(tmp_path / "card.png")
    given = {"products": write_table(tmp_path, {"p": ["card.png"]}), "output": f"{tmp_path}/report.parquet"}
    with pytest.raises(Refused, match=message):
        main(CheckProductsConfig(**(given | changed)))
