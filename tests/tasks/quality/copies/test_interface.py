from tasks.quality.copies.interface import interface
from tests.fakes.pictures import picture


def test_few_pictures_show_no_interface():
    assert interface([picture(0)[0]] * 5) is None


def test_what_stands_at_the_same_place_in_all_pictures_is_found_and_tissue_is_not():
    logo = picture(900, (50, 60))[0]
    pictures = [picture(seed, (150, 180))[0].copy() for seed in range(12)]
    for image in pictures:
        image[90:140, 20:80] = logo
    found = interface(pictures)
    assert found is not None
    assert found[100:130, 30:70].all()
    found[74:156, 4:96] = False
    assert not found.any()


def test_frames_of_one_scene_are_no_interface():
    assert interface([picture(3, (150, 180))[0]] * 12) is None
