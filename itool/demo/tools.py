"""The tools of the built-in task: thirty over ten domains, a third of them near-duplicates of a neighbour.

Each tool has two schema versions, which differ in the names of the parameters (`origin` / `from_city`), so that a model must read the
prompt and cannot learn the names by heart. `asks` are ways to want the tool, `cues` ways to give one argument; `{}` is where its value
goes. For a flag, the two sides of `|` mean true and false. This is data: nothing here draws anything.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Param:
    """One parameter: its name in each schema version, its kind (values.py), and the words that introduce its value."""

    names: tuple[str, ...]
    kind: str
    cues: tuple[str, ...]
    optional: bool
    choices: tuple[str, ...]


@dataclass(frozen=True)
class ToolSpec:
    """One tool with the ways to ask for it. `rivals` names the near-duplicates that make good distractors."""

    name: str
    about: str
    asks: tuple[str, ...]
    params: tuple[Param, ...]
    rivals: tuple[str, ...] = ()


def _need(names: str, kind: str, *cues: str, choices: str = "") -> Param:
    return Param(tuple(names.split("/")), kind, cues, False, tuple(choices.split()))


def _may(names: str, kind: str, *cues: str, choices: str = "") -> Param:
    return Param(tuple(names.split("/")), kind, cues, True, tuple(choices.split()))


_FROM = ("from {}", "leaving {}", "out of {}", "departing from {}")
_TO = ("to {}", "bound for {}", "going to {}", "arriving in {}")
_IN = ("in {}", "somewhere in {}", "located in {}")
_ON = ("on {}", "for {}", "dated {}")
_AT = ("at {}", "around {}", "starting at {}")

TOOLS: tuple[ToolSpec, ...] = (
    ToolSpec(
        "book_flight", "Buy a plane ticket", ("book a flight", "get me a plane ticket", "I need to fly", "buy a seat on a plane"),
        (
            _need("origin/from_city", "city", *_FROM),
            _need("destination/to_city", "city", *_TO),
            _need("date/day", "date", *_ON),
            _may("cabin/seat_class", "choice", "in {} class", "{} class", "flying {}", choices="economy business first"),
            _may("bags/luggage", "count", "with {} bags", "checking {} suitcases", "{} bags"),
        ),
        ("find_flights", "book_train"),
    ),
    ToolSpec(
        "find_flights", "List plane connections", ("list flights", "which planes go", "show me flights", "search for flights"),
        (
            _need("origin/from_city", "city", *_FROM),
            _need("destination/to_city", "city", *_TO),
            _need("date/day", "date", *_ON),
            _may("budget/max_price", "price", "below {}", "for at most {}", "under {}"),
            _may("direct/nonstop", "flag", "nonstop only|stops are fine", "without stops|with stops"),
        ),
        ("book_flight",),
    ),
    ToolSpec(
        "book_train", "Buy a rail ticket", ("book a train", "get me a rail ticket", "buy a train ticket", "I want to take the train"),
        (
            _need("start/from_station", "city", *_FROM),
            _need("end/to_station", "city", *_TO),
            _need("departure/leave_at", "time24", *_AT, "leaving at {}"),
            _may("window/window_seat", "flag", "by the window|on the aisle", "with a window seat|without a window seat"),
        ),
        ("book_flight", "book_bus"),
    ),
    ToolSpec(
        "book_bus", "Buy a coach ticket", ("book a bus", "get me a coach ticket", "I want to take the bus", "buy a seat on a coach"),
        (
            _need("start/from_stop", "city", *_FROM),
            _need("end/to_stop", "city", *_TO),
            _need("departure/leave_at", "time", *_AT, "leaving at {}"),
            _may("people/riders", "count", "for {} people", "{} riders", "with {} passengers"),
        ),
        ("book_train",),
    ),
    ToolSpec(
        "book_hotel", "Reserve a hotel room", ("book a hotel", "find me a room", "I need a place to sleep", "reserve a hotel room"),
        (
            _need("city/place", "city", *_IN),
            _need("arrival/check_in", "day", "from {}", "arriving {}", "checking in on {}"),
            _need("nights/stay", "count", "for {} nights", "{} nights", "staying {} nights"),
            _may("breakfast/meals", "flag", "with breakfast|without breakfast", "breakfast included|no breakfast"),
            _may("limit/max_price", "amount", "below {}", "for at most {}", "under {}"),
        ),
        ("cancel_hotel",),
    ),
    ToolSpec(
        "cancel_hotel", "Cancel a hotel room", ("cancel my hotel", "drop my room", "call off the hotel", "I no longer need the room"),
        (
            _need("booking/reference", "code", "under {}", "number {}", "with reference {}"),
            _may("refund/money_back", "flag", "with a refund|without a refund", "and refund me|no refund needed"),
        ),
        ("book_hotel",),
    ),
    ToolSpec(
        "reserve_table", "Book a restaurant table",
        ("reserve a table", "get us a table", "book a restaurant", "we want to eat out"),
        (
            _need("city/town", "city", *_IN),
            _need("when/time", "time", *_AT),
            _need("guests/party", "count", "for {} people", "for a party of {}", "{} guests"),
            _may("seating/area", "choice", "{}", "sitting {}", "preferably {}", choices="indoors outdoors upstairs"),
        ),
        ("order_meal",),
    ),
    ToolSpec(
        "order_meal", "Have food delivered", ("order food", "have dinner delivered", "bring me a meal", "I want takeaway"),
        (
            _need("dishes/food", "items", "namely {}", "I want {}", "with {}"),
            _need("hour/deliver_at", "time24", *_AT, "by {}"),
            _may("cutlery/forks", "flag", "with cutlery|without cutlery", "including forks|no forks"),
            _may("tip/tip_rate", "percent", "tipping {}", "and tip {}", "adding {} tip"),
        ),
        ("reserve_table", "buy_groceries"),
    ),
    ToolSpec(
        "buy_groceries", "Order from the supermarket",
        ("buy groceries", "shop for me", "fill my basket", "get things from the supermarket"),
        (
            _need("items/articles", "items", "namely {}", "get {}", "with {}"),
            _may("cap/spend_limit", "amount", "below {}", "for at most {}", "spending up to {}"),
            _may("delivery/deliver_on", "date", "delivered {}", "for {}", "to arrive {}"),
        ),
        ("order_meal", "add_to_list"),
    ),
    ToolSpec(
        "add_to_list", "Put entries on a list", ("add to my list", "note things down", "put on my list", "extend the list"),
        (
            _need("entries/things", "items", "{}", "the entries {}", "namely {}"),
            _need("list/list_name", "choice", "for {}", "on the {} list", "under {}", choices="home work travel"),
        ),
        ("buy_groceries",),
    ),
    ToolSpec(
        "create_event", "Put an event in the calendar",
        ("schedule a meeting", "set up an event", "put a meeting in my calendar", "plan an appointment"),
        (
            _need("title/subject", "text", "about {}", "called {}", "titled {}"),
            _need("day/date", "day", *_ON),
            _need("start/begins", "time24", *_AT),
            _may("length/duration", "duration", "lasting {}", "for {}", "that takes {}"),
            _may("guest/invite", "person", "with {}", "inviting {}", "together with {}"),
        ),
        ("move_event", "set_reminder"),
    ),
    ToolSpec(
        "move_event", "Shift a calendar event", ("move a meeting", "shift the event", "postpone the appointment", "reschedule my meeting"),
        (
            _need("title/subject", "text", "about {}", "called {}", "titled {}"),
            _need("new_day/to_date", "date", "to {}", "until {}", "onto {}"),
            _may("new_start/to_time", "time", *_AT),
        ),
        ("create_event",),
    ),
    ToolSpec(
        "set_reminder", "Remind the user of something", ("remind me", "set a reminder", "don't let me forget", "give me a nudge"),
        (
            _need("topic/note", "text", "about {}", "of {}", "regarding {}"),
            _need("when/day", "date", "on {}", "{}", "come {}"),
            _may("repeat/frequency", "choice", "{}", "repeating {}", "every time {}", choices="daily weekly monthly"),
        ),
        ("create_event", "set_timer"),
    ),
    ToolSpec(
        "set_timer", "Start a countdown", ("set a timer", "start a countdown", "count down", "begin timing"),
        (
            _need("length/seconds_total", "minutes", "for {}", "of {}", "lasting {}"),
            _may("label/name", "text", "called {}", "for the {}", "labelled {}"),
        ),
        ("set_alarm", "set_reminder"),
    ),
    ToolSpec(
        "set_alarm", "Set a wake-up alarm", ("set an alarm", "wake me up", "get me out of bed", "ring me awake"),
        (
            _need("time/clock", "time24", *_AT[:2], "by {}"),
            _may("day/date", "date", "on {}", "{}", "come {}"),
            _may("snooze/snooze_length", "minutes", "snoozing {}", "with {} of snooze", "and {} snooze"),
        ),
        ("set_timer",),
    ),
    ToolSpec(
        "send_message", "Text a person", ("send a message", "text somebody", "write a text", "drop a line"),
        (
            _need("recipient/to", "person", "to {}", "for {}", "addressed to {}"),
            _need("body/content", "text", "about {}", "saying {}", "that reads {}"),
            _may("urgent/priority", "flag", "marked urgent|no rush", "with priority|without priority"),
        ),
        ("call_person",),
    ),
    ToolSpec(
        "call_person", "Phone a person", ("make a call", "ring somebody", "phone somebody", "start a call"),
        (
            _need("contact/callee", "person", "to {}", "with {}", "reaching {}"),
            _may("mode/call_type", "choice", "by {}", "using {}", "over {}", choices="video audio speaker"),
        ),
        ("send_message",),
    ),
    ToolSpec(
        "transfer_money", "Send money to a person", ("transfer money", "wire funds", "send cash", "make a payment"),
        (
            _need("payee/to", "person", "to {}", "for {}", "in favor of {}"),
            _need("amount/sum", "amount", "of {}", "worth {}", "{}"),
            _may("note/memo", "text", "with the note {}", "mentioning {}", "marked {}"),
            _may("date/pay_on", "day", "on {}", "dated {}", "executed {}"),
        ),
        ("request_money", "pay_bill"),
    ),
    ToolSpec(
        "request_money", "Ask a person for money", ("request money", "ask for cash", "claim money back", "send a payment request"),
        (
            _need("payer/debtor", "person", "from {}", "owed by {}", "billed to {}"),
            _need("amount/sum", "amount", "of {}", "worth {}", "{}"),
            _may("reason/purpose", "text", "because of {}", "for {}", "mentioning {}"),
        ),
        ("transfer_money",),
    ),
    ToolSpec(
        "pay_bill", "Settle an invoice", ("pay a bill", "settle an invoice", "clear my invoice", "take care of a bill"),
        (
            _need("invoice/bill_id", "code", "number {}", "{}", "with the number {}"),
            _need("total/price", "price", "of {}", "worth {}", "over {}"),
            _may("account/source", "choice", "from {}", "using {}", "charging {}", choices="checking savings credit"),
        ),
        ("transfer_money",),
    ),
    ToolSpec(
        "get_forecast", "Weather of the coming days",
        ("check the weather", "what is the weather", "give me the forecast", "how will the sky be"),
        (
            _need("location/city", "city", *_IN),
            _need("day/date", "date", "on {}", "for {}", "{}"),
            _may("units/scale", "choice", "in {}", "using {}", "shown in {}", choices="celsius fahrenheit kelvin"),
        ),
        ("get_air_quality",),
    ),
    ToolSpec(
        "get_air_quality", "Pollution at a place", ("check the air", "how clean is the air", "measure pollution", "look up the smog"),
        (
            _need("location/town", "city", *_IN),
            _may("detail/full_report", "flag", "with details|in short", "as a full report|as a summary"),
        ),
        ("get_forecast",),
    ),
    ToolSpec(
        "set_heating", "Control the thermostat", ("set the heating", "make it warmer", "adjust the thermostat", "heat the house"),
        (
            _need("degrees/target", "degrees", "to {}", "at {}", "reaching {}"),
            _need("room/zone", "choice", "in the {}", "for the {}", "only the {}", choices="kitchen bedroom office"),
            _may("period/hold", "duration", "for {}", "lasting {}", "during {}"),
        ),
        ("set_lights",),
    ),
    ToolSpec(
        "set_lights", "Control the lamps", ("set the lights", "dim the lamps", "adjust the lamps", "change the lighting"),
        (
            _need("level/brightness", "percent", "to {}", "at {}", "down to {}"),
            _need("room/zone", "choice", "in the {}", "for the {}", "only the {}", choices="kitchen bedroom office"),
            _may("fade/smooth", "flag", "smoothly|at once", "with a fade|without a fade"),
        ),
        ("set_heating",),
    ),
    ToolSpec(
        "track_parcel", "Where a parcel is", ("track a parcel", "where is my package", "locate my delivery", "follow a shipment"),
        (
            _need("parcel/tracking_id", "code", "number {}", "{}", "with code {}"),
            _may("notify/alerts", "flag", "with alerts|without alerts", "and notify me|no notification"),
        ),
        ("return_parcel",),
    ),
    ToolSpec(
        "return_parcel", "Send an order back", ("return a parcel", "send back my package", "give back an order", "ship my order back"),
        (
            _need("parcel/order_id", "code", "number {}", "{}", "with code {}"),
            _need("cause/reason", "choice", "because it is {}", "as it came {}", "since it is {}", choices="damaged late wrong"),
            _may("pickup/collect_on", "date", "collected {}", "with pickup on {}", "on {}"),
        ),
        ("track_parcel",),
    ),
    ToolSpec(
        "log_workout", "Record exercise", ("log a workout", "record my training", "note my exercise", "I just exercised"),
        (
            _need("sport/activity", "choice", "of {}", "doing {}", "namely {}", choices="running cycling swimming"),
            _need("length/time_spent", "minutes", "for {}", "lasting {}", "that took {}"),
            _may("distance/covered", "quantity", "over {}", "covering {}", "and {}"),
        ),
        ("log_meal",),
    ),
    ToolSpec(
        "log_meal", "Record what was eaten", ("log a meal", "record my lunch", "note what I ate", "track my food"),
        (
            _need("foods/items", "items", "with {}", "namely {}", "consisting of {}"),
            _may("weight/portion", "quantity", "weighing {}", "of {}", "about {}"),
            _may("date/eaten_on", "date", "eaten {}", "on {}", "{}"),
        ),
        ("log_workout",),
    ),
    ToolSpec(
        "translate_text", "Translate between languages",
        ("translate a text", "put words into another language", "convert a phrase", "say something"),
        (
            _need("text/phrase", "text", "reading {}", "the words {}", "that says {}"),
            _need("target/into", "language", "into {}", "to {}", "in {}"),
            _may("formal/polite", "flag", "formally|informally", "in a polite tone|in a casual tone"),
        ),
        ("find_course",),
    ),
    ToolSpec(
        "find_course", "Search language lessons", ("find a course", "I want to learn", "look for lessons", "search for a class"),
        (
            _need("language/subject", "language", "in {}", "for {}", "teaching {}"),
            _need("city/place", "city", "near {}", "around {}", "held in {}"),
            _may("level/grade", "choice", "for {} learners", "at {} level", "suited to {}", choices="beginner middle expert"),
            _may("fee/max_price", "amount", "below {}", "costing up to {}", "under {}"),
        ),
        ("translate_text",),
    ),
)  # fmt: skip

TOOL_NAMES = frozenset(tool.name for tool in TOOLS)
