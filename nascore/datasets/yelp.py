"""The Yelp Open Dataset, in the JSON files of its archive: yelp_academic_dataset_{review,user,business}.json.

Every review is a positive, repeated ones too; who is in no table has no features. The features are those of AutoTower's
experiments (Section 4.1.1), with the bins of the authors' preprocessing: 100 of users' numbers, their first day among
them, 20 of an item's reviews, 5 of its stars. Their loader puts the votes of the review that is to be predicted in the
place of the user's; here they are the user's. Counts and stars are of the day of the release: they know of later rows.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import ClassVar

import pyarrow as pa

from nascore.datasets import Dataset, Feature, Frequent, Layout, OnBadRow
from nascore.schema import Side

USER, ITEM, TIME = "user_id", "business_id", "timestamp"
REVIEWS = "yelp_academic_dataset_review.json"
TABLES: dict[Side, str] = {"user": "yelp_academic_dataset_user.json", "item": "yelp_academic_dataset_business.json"}
KEYS: dict[Side, str] = {"user": USER, "item": ITEM}
LOGGED = {USER: pa.string(), ITEM: pa.string(), "date": pa.timestamp("s")}
ABOUT: dict[Side, dict[str, pa.DataType]] = {
    "user": {
        USER: pa.string(),
        "review_count": pa.int64(),
        "yelping_since": pa.timestamp("s"),
        "useful": pa.int64(),
        "funny": pa.int64(),
        "cool": pa.int64(),
    },
    "item": {
        ITEM: pa.string(),
        "city": pa.string(),
        "state": pa.string(),
        "stars": pa.float64(),
        "review_count": pa.int64(),
        "is_open": pa.int64(),
    },
}
FEATURES = (
    Feature(USER, "user"),
    Feature("user_review_count", "user", "number", 100),
    Feature("yelping_since", "user", "number", 100),
    Feature("useful", "user", "number", 100),
    Feature("funny", "user", "number", 100),
    Feature("cool", "user", "number", 100),
    Feature(ITEM, "item"),
    Feature("city", "item"),
    Feature("state", "item"),
    Feature("stars", "item", "number", 5),
    Feature("item_review_count", "item", "number", 20),
    Feature("is_open", "item"),
)


class Yelp(Dataset):
    """Users of at least `user_rows` reviews and businesses of at least `item_rows`, counted once over all reviews."""

    protocols: ClassVar[tuple[str, ...]] = ("user_temporal", "global_temporal", "authors", "leave_one_out")

    def __init__(self, raw: str, on_bad_row: OnBadRow = "error", user_rows: int = 20, item_rows: int = 20) -> None:
        super().__init__(raw, on_bad_row)
        self.least = {USER: user_rows, ITEM: item_rows}

    def layout(self) -> Layout:
        needed = {REVIEWS: LOGGED, **{TABLES[side]: ABOUT[side] for side in TABLES}}
        for name, fields in needed.items():
            file = self.one_of(name)
            self.require(file, fields, self.fields_of(file))
        history = tuple(feature.name for feature in FEATURES if feature.side == "item")
        return Layout(USER, ITEM, TIME, FEATURES, history=history, history_length=40)

    def rows(self) -> Iterator[pa.Table]:
        yield from self._frequent.rows(self._reviews())

    def entities(self, side: Side) -> Iterator[pa.Table]:
        yield from self._frequent.entities(KEYS[side], self._about(side))

    @cached_property
    def _frequent(self) -> Frequent:
        return Frequent(self._reviews(), self.least)

    def _reviews(self) -> Iterator[pa.Table]:
        for table in self.objects(self.one_of(REVIEWS), LOGGED, needed=tuple(LOGGED)):
            yield pa.table({USER: table[USER], ITEM: table[ITEM], TIME: table["date"].cast(pa.int64())})

    def _about(self, side: Side) -> Iterator[pa.Table]:
        for table in self.objects(self.one_of(TABLES[side]), ABOUT[side], needed=(KEYS[side],)):
            names = {"review_count": f"{side}_review_count"}
            columns = {names.get(field, field): table[field] for field in ABOUT[side]}
            if side == "user":
                columns["yelping_since"] = table["yelping_since"].cast(pa.int64())
            yield pa.table(columns)

    @classmethod
    def specimen(cls) -> dict[str, bytes]:
        reviews = [
            f'{{"review_id":"r{turn}{user}{item}","user_id":"{user}","business_id":"{item}","stars":4.0,"useful":0,'
            f'"funny":0,"cool":0,"text":"Fine.\\nTwice.","date":"2019-0{1 + turn % 3}-1{turn} 12:00:0{turn}"}}\n'
            for turn in range(10)
            for user in ("ann", "bob")
            for item in ("bar", "inn")
        ]
        once = '{"review_id":"x","user_id":"ann","business_id":"spa","stars":5.0,"date":"2020-02-29 08:00:00"}\n'
        reviews[20:20] = [once]
        reviews[-1:-1] = [once.replace("2020-02-29", "yesterday")]
        users = (
            '{"user_id":"ann","name":"Ann","review_count":21,"yelping_since":"2012-05-06 07:08:09","useful":3,'
            '"funny":0,"cool":1,"elite":"","friends":"bob","fans":2,"average_stars":4.1}\n'
            '{"user_id":"bob","name":"Bob","review_count":50,"yelping_since":"2015-01-01 00:00:00","useful":9,'
            '"funny":2,"cool":7,"elite":"2018","friends":"None","fans":0,"average_stars":3.9}\n'
        )
        businesses = (
            '{"business_id":"bar","name":"Café","city":"Montréal","state":"QC","stars":4.5,"review_count":30,'
            '"is_open":1,"attributes":{"WiFi":"u\'free\'"},"categories":"Bars, Food","hours":null}\n'
            '{"business_id":"inn","name":"Inn","city":"","state":"NV","stars":3.0,"review_count":25,'
            '"is_open":0,"attributes":null,"categories":null,"hours":null}\n'
            '{"business_id":"spa","name":"Spa","city":"Reno","state":"NV","stars":5.0,"review_count":5,"is_open":1}\n'
        )
        return {
            REVIEWS: "".join(reviews).encode(),
            TABLES["user"]: users.encode(),
            TABLES["item"]: businesses.encode(),
        }
