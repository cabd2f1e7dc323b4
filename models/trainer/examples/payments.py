"""Simulates card payments: normal spending, and a sample that also contains four kinds of fraud.

    python payments.py --history history.ndjson.gz --sample sample.ndjson.gz

Every cardholder has a home, a daily and weekly rhythm, favourite merchants, typical amounts by merchant category, one
or two devices for online payments, a credit limit that is paid off once a month, and an occasional trip. `history` is
eight weeks without fraud, to train on. `sample` is the next 20,000 payments in order of time, 1-2 % of them fraudulent.
`label` (0 or 1) and `scenario` are for evaluation and are not features.

The scenarios, each with the normal behaviour that makes it hard to detect:
  card_testing      A stolen number is tried with small amounts, minutes apart, at young online merchants. The first
                    try looks like any small online payment.
  account_takeover  Someone else uses the owner's account, often with a new device, at new merchants, with higher
                    amounts and at night. Owners, too, buy phones, sleep badly and try new shops.
  cloned_card       A copied magnetic stripe is used far from home, soon after the owner paid at home. Owners, too,
                    travel, and pay by stripe where chips are not read.
  bust_out          The cardholder does not intend to pay and spends the card to its limit within two days, on the
                    usual device and often at the usual merchants.
The owner's own payments stop with the first fraudulent one and resume two days after the last, with a new card.
"""

import argparse
import gzip
import json
from datetime import UTC, datetime, timedelta

import numpy as np

START = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
DAY = 86_400.0
WARM_UP, HISTORY = 7, 56  # days; the warm-up fills the statistics over the past and is not written
SAMPLE = 20_000
CARDS = 2_000

#              category         share  typical EUR  spread  online
CATEGORIES = {
    "grocery": (0.27, 28, 0.6, 0.06),
    "restaurant": (0.15, 24, 0.6, 0.10),
    "fuel": (0.08, 52, 0.35, 0.0),
    "transport": (0.10, 6, 0.7, 0.45),
    "pharmacy": (0.05, 17, 0.6, 0.10),
    "clothing": (0.06, 55, 0.7, 0.45),
    "electronics": (0.03, 130, 1.0, 0.55),
    "household": (0.05, 45, 0.8, 0.35),
    "entertainment": (0.05, 20, 0.7, 0.55),
    "digital_goods": (0.07, 9, 0.6, 1.0),
    "subscription": (0.04, 12, 0.4, 1.0),
    "travel": (0.015, 210, 0.8, 0.8),
    "hotel": (0.01, 160, 0.6, 0.5),
    "gift_card": (0.008, 40, 0.5, 0.6),
    "jewellery": (0.005, 150, 0.9, 0.2),
    "cash": (0.032, 80, 0.6, 0.0),
}
NAMES = list(CATEGORIES)
COUNTRIES = {"DE": 0.3, "FR": 0.2, "NL": 0.12, "ES": 0.12, "IT": 0.1, "PL": 0.08, "SE": 0.05, "IE": 0.03}
ABROAD = {
    "GB": 0.2,
    "US": 0.2,
    "ES": 0.15,
    "FR": 0.12,
    "IT": 0.1,
    "CH": 0.08,
    "TR": 0.06,
    "TH": 0.05,
    "AE": 0.04,
}
CURRENCY = {
    "PL": "PLN",
    "SE": "SEK",
    "GB": "GBP",
    "US": "USD",
    "CH": "CHF",
    "TR": "TRY",
    "TH": "THB",
    "AE": "AED",
}
FAR = {"US": 7000, "TH": 9000, "AE": 5000, "TR": 2200}  # km; the rest of Europe is nearer

# Share of the week's payments by hour of the day, UTC.
HOURS = np.array([1, 0.6, 0.4, 0.3, 0.4, 1, 3, 6, 7, 7, 8, 10, 11, 9, 8, 9, 11, 13, 12, 9, 6, 4, 3, 2], float)
WEEK = np.array([0.9, 0.9, 0.95, 1.0, 1.15, 1.25, 0.85])


def pick(rng, table):
    return str(rng.choice(list(table), p=np.array(list(table.values())) / sum(table.values())))


class Card:
    """A cardholder's habits."""

    def __init__(self, number, rng):
        self.rng, self.id = rng, f"card-{number:05d}"
        self.country = pick(rng, COUNTRIES)
        self.rate = rng.gamma(3, 0.42)  # payments a day
        self.wealth = np.exp(rng.normal(0, 0.4))
        taste = np.array([c[0] for c in CATEGORIES.values()]) * rng.gamma(2, 0.5, len(NAMES))
        self.taste = taste / taste.sum()
        hours = np.roll(HOURS, rng.integers(-1, 3)) * rng.gamma(6, 1 / 6, 24)
        self.hours = hours / hours.sum()
        self.online = np.exp(rng.normal(0, 0.3))
        self.devices = [(str(rng.choice(["ios", "android", "web"], p=[0.35, 0.4, 0.25])), -rng.exponential(400))]
        if rng.random() < 0.5:
            self.devices.append(("web", -rng.exponential(700)))  # (type, day on which it was first seen)
        self.limit = 100 * round(30 * self.wealth * (1 + rng.exponential(1.0)) + 5)
        self.billing_day = int(rng.integers(0, 30))
        self.favourites = {}

    def merchant(self, category, new=False):
        """A merchant (id, age on day 0), usually one that the card has used before."""
        known = self.favourites.setdefault(category, [])
        if known and not new and self.rng.random() < 0.85:
            return known[int(self.rng.integers(len(known)) * self.rng.random())]
        made = (int(self.rng.integers(1 << 40)), float(np.clip(self.rng.lognormal(6.8, 1.1), 2, 9000)))
        if not new:
            known.append(made)
        return made

    def event(self, t, category, amount, **more):
        merchant = more.pop("merchant", None) or self.merchant(category)
        return {"t": t, "category": category, "amount": max(0.2, round(float(amount), 2)), "merchant": merchant,
                "scenario": "normal", "country": self.country, "where": (0.0, 0.0), "declined": 0} | more  # fmt: skip

    def near(self, scale):
        """A random place as (x, y) in km from home."""
        r, a = self.rng.exponential(scale), self.rng.uniform(0, 2 * np.pi)
        return (r * np.cos(a), r * np.sin(a))

    def normal(self, days):
        """All payments of the owner within `days` days."""
        rng, events, trip = self.rng, [], None
        for day in range(days):
            if rng.random() < 0.004:
                self.devices.append((str(rng.choice(["ios", "android", "web"])), float(day)))  # bought a phone
            if trip and day >= trip["until"]:
                trip = None
            elif not trip and rng.random() < 0.008:
                country = pick(rng, {c: p for c, p in ABROAD.items() if c != self.country})
                distance, angle = FAR.get(country, 900) * rng.uniform(0.6, 1.4), rng.uniform(0, 2 * np.pi)
                where = (distance * np.cos(angle), distance * np.sin(angle))
                trip = {"until": day + 1 + rng.geometric(0.2), "country": country, "where": where}
            weekday, busy = day % 7, rng.gamma(2, 0.5)  # some days have many payments
            for _ in range(rng.poisson(self.rate * WEEK[weekday] * busy * (1.4 if trip else 1))):
                t = (day + (rng.choice(24, p=self.hours) + rng.random()) / 24) * DAY
                events.append(self.purchase(t, trip))
        return sorted(events, key=lambda e: e["t"])

    def purchase(self, t, trip):
        rng = self.rng
        category = NAMES[rng.choice(len(NAMES), p=self.taste)]
        if trip and rng.random() < 0.4:
            category = str(rng.choice(["restaurant", "hotel", "transport", "cash", "clothing"]))
        _, typical, spread, online = CATEGORIES[category]
        amount = typical * self.wealth * np.exp(rng.normal(0, spread))
        if category in ("fuel", "cash") and rng.random() < 0.7:
            amount = max(10, 10 * round(amount / 10))
        if rng.random() < min(0.97, online * self.online) or category in ("subscription", "digital_goods"):
            recurring = category == "subscription" or rng.random() < 0.03
            device = self.devices[-1 if rng.random() < 0.75 else int(rng.integers(len(self.devices)))]
            country = self.country if rng.random() < 0.75 else pick(rng, {"IE": 3, "US": 2, "GB": 2, "NL": 2, "DE": 2})
            mode = "recurring" if recurring else "ecommerce" if rng.random() < 0.97 else "manual"
            device = None if recurring or mode == "manual" else device
            return self.event(t, category, amount, mode=mode, device=device, country=country, where=None)
        stripe = 0.25 if trip and trip["country"] in ("US", "TH") else 0.004
        modes = {"contactless": 0.68 if amount < 50 else 0.15, "chip": 0.32, "magstripe": stripe}
        place = self.near(6 if rng.random() < 0.93 else 60)
        more = {}
        if trip:
            place = (trip["where"][0] + place[0], trip["where"][1] + place[1])
            more = {"country": trip["country"], "merchant": self.merchant(category, new=True)}
        return self.event(t, category, amount, mode=pick(rng, modes), device=None, where=place, **more)

    # -- fraud -------------------------------------------------------------------------------------------

    def card_testing(self, t):
        rng, events = self.rng, []
        merchant = (int(rng.integers(1 << 40)), float(rng.uniform(3, 1500)))
        country, device = pick(rng, ABROAD), ("web", t / DAY)
        for _ in range(rng.integers(4, 13)):
            events.append(
                self.event(
                    t, str(rng.choice(["digital_goods", "entertainment", "gift_card"], p=[0.6, 0.25, 0.15])),
                    rng.choice([0.5, 0.99, 1, 1, 1.5, 2, 2.99]) + rng.exponential(0.5),
                    merchant=merchant, mode=str(rng.choice(["ecommerce", "manual"], p=[0.75, 0.25])), country=country,
                    device=device if rng.random() < 0.6 else None, where=None, declined=int(rng.random() < 0.45),
                )
            )  # fmt: skip
            t += rng.exponential(150) + 8
        return events

    def account_takeover(self, t):
        rng, events = self.rng, []
        if rng.random() < 0.65:
            t = (t // DAY) * DAY + rng.uniform(0, 5) * 3600  # while the owner sleeps
        device = (
            str(rng.choice(["web", "android", "ios"], p=[0.5, 0.35, 0.15])),
            t / DAY - rng.exponential(0.5),
        )
        if rng.random() < 0.35:
            device = self.devices[-1]  # the fraudster controls the owner's device remotely
        for _ in range(rng.integers(2, 6)):
            category = str(rng.choice(["electronics", "gift_card", "travel", "clothing", "jewellery", "digital_goods"]))
            amount = CATEGORIES[category][1] * self.wealth * rng.lognormal(1.2, 0.6)
            country = self.country if rng.random() < 0.4 else pick(rng, ABROAD)
            events.append(
                self.event(
                    t, category, amount, merchant=self.merchant(category, new=True), mode="ecommerce", country=country,
                    device=device, where=None, declined=int(rng.random() < 0.15),
                )
            )  # fmt: skip
            t += rng.exponential(2400) + 60
        return events

    def cloned_card(self, t):
        rng, events = self.rng, []
        country = pick(rng, {"US": 4, "TH": 2, "TR": 2, "GB": 1, "IT": 1})
        distance, angle = FAR.get(country, 900) * rng.uniform(0.5, 1.4), rng.uniform(0, 2 * np.pi)
        for _ in range(rng.integers(2, 6)):
            category = str(rng.choice(["cash", "electronics", "fuel", "clothing", "grocery", "jewellery"]))
            amount = CATEGORIES[category][1] * self.wealth * rng.lognormal(0.6, 0.6)
            near = self.near(10)
            where = (distance * np.cos(angle) + near[0], distance * np.sin(angle) + near[1])
            events.append(
                self.event(
                    t, category, amount, merchant=self.merchant(category, new=True), device=None, country=country,
                    mode=str(rng.choice(["magstripe", "chip", "contactless"], p=[0.8, 0.1, 0.1])), where=where,
                    declined=int(rng.random() < 0.15),
                )
            )  # fmt: skip
            t += rng.exponential(3000) + 120
        return events

    def bust_out(self, t):
        rng, events = self.rng, []
        left = self.limit * rng.uniform(0.8, 1.0)
        while left > 0.05 * self.limit and len(events) < 9:
            category = str(rng.choice(["electronics", "jewellery", "gift_card", "travel", "cash", "clothing"]))
            amount = min(left, self.limit * rng.uniform(0.1, 0.3))
            left -= amount
            new = {"merchant": self.merchant(category, new=rng.random() < 0.6)}
            online = rng.random() < 0.5 and category != "cash"
            new |= (
                {"mode": "ecommerce", "device": self.devices[-1], "where": None}
                if online
                else {"mode": "chip", "device": None, "where": self.near(12)}
            )
            events.append(self.event(t, category, amount, **new, declined=int(rng.random() < 0.1)))
            t += rng.exponential(9000) + 300
        return events


SCENARIOS = {"card_testing": 0.15, "account_takeover": 0.3, "cloned_card": 0.3, "bust_out": 0.25}


def with_fraud(card, events, first_day, last_day):
    """Adds one fraud to a card's payments and removes the owner's own until two days after it."""
    kind = pick(card.rng, SCENARIOS)
    fraud = getattr(card, kind)(card.rng.uniform(first_day, last_day) * DAY)
    for event in fraud:
        event["scenario"] = kind
    start, end = fraud[0]["t"], fraud[-1]["t"]
    quiet = [e for e in events if not start < e["t"] < end + 2 * DAY]
    return sorted(quiet + fraud, key=lambda e: e["t"])


def records(card, events):
    """Yields the record that a payment system would send for each payment, with statistics over the card's past."""
    past, used_at, place, mean_log, balance, month = [], set(), None, [], 0.0, None
    rng = card.rng
    for event in events:
        t, day = event["t"], event["t"] / DAY
        day_ago = [e for e in past if t - e["t"] <= DAY]
        if month != (int(day) + card.billing_day) // 30:
            balance, month = (
                balance * 0.1 if month is not None else rng.uniform(0, 0.4) * card.limit,
                (int(day) + card.billing_day) // 30,
            )
        speed = None
        if event["where"] is not None and place is not None:
            km = float(np.hypot(event["where"][0] - place[1][0], event["where"][1] - place[1][1]))
            speed = km / max((t - place[0]) / 3600, 0.05)
            if event["scenario"] == "normal" and km > 100 and speed > 800:
                continue  # the owner cannot have travelled there in time
        usual = np.exp((sum(mean_log[-30:]) + 5 * 3.2) / (len(mean_log[-30:]) + 5))
        abroad = event["country"] not in COUNTRIES or event["country"] in CURRENCY
        device = event["device"]
        moment = START + timedelta(milliseconds=round(t * 1000))
        record = {
            "payment_id": f"{int(rng.integers(1 << 60)):015x}",
            "card_id": card.id,
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "amount": event["amount"],
            "currency": CURRENCY.get(event["country"], "EUR") if abroad else "EUR",
            "entry_mode": event["mode"],
            "card_present": event["where"] is not None,
            "merchant": {
                "id": f"m-{event['merchant'][0]:010x}",
                "category": event["category"],
                "country": event["country"],
                "age_days": None if event["merchant"][0] % 25 == 0 else int(event["merchant"][1] + max(day, 0)),
            },
            "abroad": event["country"] != card.country,
            "card": {
                "country": card.country,
                "credit_used": round(min(1.0, (balance + event["amount"]) / card.limit), 3),
            },
            "seconds_since_last_payment": round(t - past[-1]["t"], 1) if past else None,
            "new_merchant": event["merchant"][0] not in used_at,
            "amount_over_usual": round(event["amount"] / usual, 3),
            "count_1h": sum(t - e["t"] <= 3600 for e in day_ago),
            "count_24h": len(day_ago),
            "sum_24h": round(sum(e["amount"] for e in day_ago), 2),
            "merchants_24h": len({e["merchant"][0] for e in day_ago}),
            "declined_24h": sum(e["declined"] for e in day_ago) + int(rng.random() < 0.01),
        }
        if event["where"] is not None:
            record["distance_from_home_km"] = round(float(np.hypot(*event["where"])), 1)
            record["speed_kmh"] = None if speed is None else round(speed, 1)
            place = (t, event["where"])
        if device is not None:
            record["device"] = {
                "type": device[0],
                "age_days": round(max(0.0, day - device[1]), 2),
                "new": day - device[1] < 1,
            }
        record |= {"label": int(event["scenario"] != "normal"), "scenario": event["scenario"]}
        yield t, record
        past = [*day_ago[-200:], event]
        used_at.add(event["merchant"][0])
        mean_log.append(float(np.log(event["amount"])))
        balance += event["amount"]


def simulate(seed, cards):
    """Simulates all cards -> (history, sample), both lists of records in order of time."""
    first, everything = WARM_UP + HISTORY, []
    days = first + 12
    for number in range(cards):
        card = Card(number, np.random.default_rng([seed, number]))
        events = card.normal(days)
        if card.rng.random() < 0.045:
            events = with_fraud(card, events, first, days - 2)
        everything += records(card, events)
    everything.sort(key=lambda pair: (pair[0], pair[1]["payment_id"]))
    history = [r for t, r in everything if WARM_UP * DAY <= t < first * DAY and not r["label"]]
    return history, [r for t, r in everything if t >= first * DAY][:SAMPLE]


def write(path, rows):
    with open(path, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        for row in rows:
            file.write(json.dumps(row, separators=(",", ":")).encode() + b"\n")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--history", required=True, metavar="FILE.ndjson.gz")
    p.add_argument("--sample", required=True, metavar="FILE.ndjson.gz")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--cards", type=int, default=CARDS)
    args = p.parse_args()
    history, sample = simulate(args.seed, args.cards)
    write(args.history, history)
    write(args.sample, sample)
    kinds = [r["scenario"] for r in sample]
    print(
        f"{len(history)} payments of history, {len(sample)} in the sample:",
        {k: kinds.count(k) for k in sorted(set(kinds))},
    )


if __name__ == "__main__":
    main()
