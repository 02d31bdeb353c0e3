import pytest
from PIL import Image

from worker.demo import pictures
from worker.errors import StartupError


def test_the_bundled_photographs_are_there_and_large_enough():
    found = pictures.bundled()
    names = [picture.name for picture in found]
    assert len(found) >= pictures.LEAST
    assert names == sorted(set(names))
    assert "motorcycle_left" in names
    assert "motorcycle_right" not in names  # shows what the left half of the pair shows
    for picture in found:
        assert picture.image.mode == "RGB"
        assert min(picture.image.size) >= pictures.SMALLEST_SIDE
        assert max(picture.image.size) <= pictures.LARGEST_SIDE


def test_a_folder_gives_its_pictures_and_nothing_else(tmp_path, references, benign):
    (tmp_path / "sub").mkdir()
    for picture in references:
        picture.image.save(tmp_path / f"{picture.name}.png")
    for picture in benign:
        picture.image.save(tmp_path / "sub" / f"{picture.name}.jpg")
    Image.new("RGB", (20, 20)).save(tmp_path / "small.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (tmp_path / "notes.txt").write_text("no picture")
    found = {picture.name for picture in pictures.of_folder(tmp_path)}
    assert found == {picture.name for picture in [*references, *benign]}


def test_a_folder_with_too_few_pictures_is_refused(tmp_path, references):
    references[0].image.save(tmp_path / "one.png")
    with pytest.raises(StartupError, match="1 pictures"):
        pictures.of_folder(tmp_path)


def test_transparency_becomes_white(tmp_path):
    for n in range(pictures.LEAST):
        Image.new("RGBA", (130, 130), (255, 0, 0, 0)).save(tmp_path / f"{n}.png")
    assert pictures.of_folder(tmp_path)[0].image.getpixel((5, 5)) == (255, 255, 255)
