"""Benchmarks in miniature, each in the layout that its authors publish."""

import base64
import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(path: Path, number: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20 + 5 * (number % 7), 24), (9 * number % 256, 200 - 7 * number % 200, 60)).save(path)
    return path


def picture_bytes(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 12), (20 * number % 256, 90, 30)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, value) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def lines(*records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def chartqa(folder: Path, num_pictures: int = 3) -> Path:
    """Two human questions and one augmented one about each picture."""
    test = folder / "ChartQA Dataset" / "test"
    human, augmented = [], []
    for number in range(num_pictures):
        name = f"{number:04d}.png"
        picture(test / "png" / name, number)
        human.append({"imgname": name, "query": f"What is the colour of bar {number}?", "label": "red"})
        human.append(
            {"imgname": name, "query": f"How many bars are higher than {number} in this chart?", "label": "14"}
        )
        augmented.append({"imgname": name, "query": f"What was the value in {2010 + number}?", "label": "0.5"})
    write(test / "test_human.json", human)
    write(test / "test_augmented.json", augmented)
    return folder


def chartqa_table(folder: Path) -> Path:
    """The layout of lmms-lab/ChartQA."""
    image = {"bytes": picture_bytes(), "path": None}
    rows = [
        {"image": image, "question": "How many?", "answer": "14", "type": "human_test"},
        {"image": image, "question": "What was it?", "answer": "yes", "type": "augmented_test"},
    ]
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "test-00000-of-00001.parquet")
    return folder


def docvqa(folder: Path) -> Path:
    picture(folder / "documents" / "nkbl0226_1.png")
    element = {
        "questionId": 24580,
        "question": "What is name of university?",
        "image": "documents/nkbl0226_1.png",
        "docId": 7027,
        "ucsf_document_id": "nkbl0226",
        "ucsf_document_page_no": "1",
        "answers": ["university of california", "UC"],
        "data_split": "val",
        "question_types": ["table/list", "form"],
    }
    write(folder / "val_v1.0_withQT.json", {"dataset_split": "val", "data": [element]})
    test = {key: value for key, value in element.items() if key not in ("answers", "question_types")}
    write(folder / "test_v1.0.json", {"dataset_split": "test", "data": [test | {"data_split": "test"}]})
    return folder


def infographicvqa(folder: Path) -> Path:
    picture(folder / "infographicsvqa_images" / "37313.jpeg")
    element = {
        "questionId": 98313,
        "question": "Which social platform has heavy female audience?",
        "image_local_name": "37313.jpeg",
        "answers": ["pinterest"],
        "data_split": "val",
        "answer_type": ["single span"],
    }
    write(folder / "infographicsVQA_val_v1.0_withQT.json", {"dataset_split": "val", "data": [element]})
    return folder


def ai2d(folder: Path, abc: bool = False) -> Path:
    """One question; with `abc` about letters that are to be painted over the labels of the picture."""
    picture(folder / "images" / "7.png")
    options, right = (["A", "B"], 1) if abc else (["ears", "nose", "mouth", "face"], 3)
    asked = {"abcLabel": abc, "questionId": "7.png-0", "answerTexts": options, "correctAnswer": right}
    labels = {
        f"T{n}": {
            "id": f"T{n}",
            "rectangle": [[2, 2 + 9 * n], [14, 9 + 9 * n]],
            "replacementText": "AB"[n],
            "value": "x",
        }
        for n in (0, 1)
    }
    write(folder / "annotations" / "7.png.json", {"imageName": "7.png", "text": labels})
    write(folder / "questions" / "7.png.json", {"imageName": "7.png", "questions": {"What is it?": asked}})
    write(folder / "ai2d_test_ids.csv", "7\n")
    return folder


def scienceqa(folder: Path) -> Path:
    picture(folder / "images" / "test" / "4" / "image.png")
    problem = {"question": "Which is farthest north?", "choices": ["Ohio", "Maine"], "answer": 1, "hint": "Look."}
    problem |= {"image": "image.png", "split": "test", "subject": "social science"}
    words_alone = problem | {"question": "Which is alive?", "choices": ["a cat", "a stone"], "answer": 0, "image": None}
    write(folder / "problems.json", {"4": problem, "5": words_alone | {"subject": "natural science", "hint": ""}})
    write(folder / "pid_splits.json", {"train": [], "val": [], "test": ["4", "5"]})
    return folder


def dvqa(folder: Path) -> Path:
    picture(folder / "images" / "bar_val_easy_00000001.png")
    element = {"question": "Which group has the smallest value?", "question_id": 299202, "template_id": "reasoning"}
    write(folder / "qa" / "val_easy_qa.json", [element | {"answer": "pair", "image": "bar_val_easy_00000001.png"}])
    return folder


def vqav2(folder: Path) -> Path:
    picture(folder / "val2014" / "COCO_val2014_000000262148.jpg")
    asked = {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000}
    unknown = asked | {"question_id": 1}
    write(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": [asked, unknown]})
    said = [{"answer": "down", "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]
    annotation = {"question_id": 262148000, "question_type": "where is", "answer_type": "other", "answers": said}
    write(folder / "v2_mscoco_val2014_annotations.json", {"annotations": [annotation]})
    write(folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json", {"questions": [asked]})
    (folder / "test2015").mkdir()
    return folder


def textvqa(folder: Path) -> Path:
    picture(folder / "train_images" / "003a8ae2ef43b901.jpg")
    element = {"question": "what is the brand?", "image_id": "003a8ae2ef43b901", "question_id": 34602}
    element |= {"answers": ["dakota"] * 9 + ["nous les gosses"]}
    again = element | {"question": "what colour?", "question_id": 34603, "answers": ["red"] * 9}
    write(folder / "TextVQA_0.5.1_val.json", {"dataset_type": "val", "data": [element, again]})
    return folder


def pope(folder: Path) -> Path:
    picture(folder / "val2014" / "COCO_val2014_000000310196.jpg")
    line = {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?"}
    for category in ("random", "popular", "adversarial"):
        negative = {"question_id": 2, "text": f"Is there a {category} in the image?", "label": "no"}
        write(folder / "coco" / f"coco_pope_{category}.json", lines(line | {"label": "yes"}, line | negative))
    return folder


def mmbench(folder: Path, rotated: bool = False) -> Path:
    """Two questions, of three options and of two; the second has the picture of the first."""
    image = base64.b64encode(picture_bytes()).decode()
    columns = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]
    rows = [
        [241, "Which one?", "The passage.", "x", "y", "z", "", "B", "logic", image, "s", "t"],
        [242, "Is it?", "nan", "true", "false", "", "", "A", "attribute", "241", "s", "t"],
    ]
    if rotated:
        rows.append([1_000_241, "Which one?", "The passage.", "y", "z", "x", "", "A", "logic", image, "s", "t"])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "MMBench_DEV_EN.tsv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter="\t").writerows([columns, *rows])
    return folder


def mmmu(folder: Path) -> Path:
    row = {
        "id": "validation_Art_Theory_1",
        "question": "Who painted <image 1>?",
        "options": "['Titian', \"Dürer's pupil\", '$7']",
        "answer": "B",
        "question_type": "multiple-choice",
        "subfield": "Painting",
    }
    row |= {f"image_{number}": None for number in range(1, 8)}
    one, two = ({"bytes": picture_bytes(number), "path": f"{number}.png"} for number in (1, 2))
    rows = [
        row | {"image_1": one},
        row | {"id": "validation_Art_Theory_2", "image_1": one, "image_2": two},
        row | {"id": "validation_Art_Theory_3", "image_1": one, "question_type": "open", "options": "[]"},
        row | {"id": "validation_Art_Theory_4", "image_1": one, "options": "__import__('os').abort()"},
        row | {"id": "validation_Art_Theory_5", "image_1": two, "answer": "?"},
    ]
    path = folder / "Art_Theory" / "validation-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    names = [name for name in row if not name.startswith("image_")]
    schema = pa.schema([*((name, pa.string()) for name in names), *((f"image_{n}", struct) for n in range(1, 8))])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return folder
