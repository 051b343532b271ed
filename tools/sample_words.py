"""The words of the sample task, in two halves that share nothing: what is trained on, what is kept for the test.

A frame is one wording of an order. `{items}`, `{name}`, `{city}` and `{day}` are its slots; a part in
square brackets is there only if the order has that field. Frames, corrections, greetings and
all values (names, things, cities, dates) of `HELD_OUT` occur nowhere in `TRAINING`; numbers and weekdays are
the same in both, as they are the vocabulary that has to be learned.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """One half of the task: wordings and values."""

    frames: tuple[str, ...]
    inline_quantity: tuple[str, ...]  # {new} is a number; follows the thing that it corrects
    inline_value: tuple[str, ...]  # {old} and {new}: a name, city or day
    tail_quantity: tuple[str, ...]  # {things} as written, {old} and {new} numbers
    tail_single: tuple[str, ...]  # {new} a number; only for orders of one thing
    tail_remove: tuple[str, ...]  # {things}
    tail_add: tuple[str, ...]  # {phrase} is a number and a thing
    tail_swap: tuple[str, ...]  # {things} and {phrase}
    tail_day: tuple[str, ...]  # {old} and {new}
    tail_name: tuple[str, ...]
    tail_city: tuple[str, ...]
    greetings: tuple[str, ...]
    first_names: tuple[str, ...]
    surnames: tuple[str, ...]
    titles: tuple[str, ...]
    cities: tuple[str, ...]
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    containers: tuple[str, ...]
    contents: tuple[str, ...]
    dates: tuple[tuple[int, int], ...]  # month, day

    def wordings(self) -> dict[str, tuple[str, ...]]:
        """Everything that words an order or changes one, by kind."""
        kinds = ("frames", "inline_quantity", "inline_value", "tail_quantity", "tail_single", "tail_remove", "tail_add",
                 "tail_swap", "tail_day", "tail_name", "tail_city", "greetings")
        return {kind: getattr(self, kind) for kind in kinds}


def _lines(text: str) -> tuple[str, ...]:
    return tuple(line.strip() for line in text.strip().splitlines())


def _list(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.replace("\n", " ").split(",") if word.strip())


TRAINING = Words(
    frames=_lines("""
        Please send {items}[ to {name}][ in {city}][ on {day}].
        I need {items}[ by {day}][, delivered to {city}][. My name is {name}].
        [{name} here. ]Could I get {items}[ for {day}][, shipping to {city}]?
        Can you bring {items}[ to {city}][ before {day}]?[ It is for {name}.]
        We would like {items}[, please deliver on {day}][ to {city}][, attention {name}].
        [Name: {name}. ]Order: {items}.[ City: {city}.][ Day: {day}.]
        {items}[ for {name}][, {city}][, {day}]
        I'd like to order {items}[ for {name}][ who lives in {city}][, due {day}].
        [This is {name}. ]I want {items}[ sent to {city}][ on {day}], thanks.
        [{name} wants ]{items}[, to be delivered {day}][ in {city}]
        Put me down for {items}[ on {day}][, the address is in {city}][, name {name}].
        [For {day}: ]{items}[ to {city}][, ask for {name}]
        One order: {items}.[ Ship it to {city}.][ It must arrive on {day}.][ Recipient {name}.]
        Get {items}[ over to {name}][ in {city}][ by {day}] please
        My order is {items}[, drop it off in {city}][ on {day}][, signed {name}].
        [I am {name}[ from {city}] and ]I'll take {items}[, for {day} please].
        Send {items}[ my way on {day}][, I live in {city}][, cheers, {name}]
        [Deliver to {city}: ]{items}.[ Date {day}.][ Customer {name}.]
        hello I was hoping for {items}[ around {day}][, I'm in {city}][, it's {name}]
        [On {day} ]we need {items}[ at our place in {city}][. Contact: {name}]
        Would you mind sending {items}[ to our {city} office][ on {day}][, care of {name}]?
        [{name}, {city}. ]Wanted: {items}[, needed {day}]
        Just {items}[, goes to {name}][ in {city}][, delivery {day}].
        [To {name}[, {city}]: ]{items}[, arrival {day}]
        Let me have {items}[ this coming {day}][. Send to {city}][. Thanks, {name}]
        [Mark it for {name}. ]I'm after {items}[, going to {city}][, no later than {day}].
        The usual please: {items}[, {day} is fine][, same address in {city}][, {name}]
        [My friend {name} ]needs {items}[ in {city}][ by {day}].
        Shopping list: {items}.[ When: {day}.][ Where: {city}.][ Who: {name}.]
        Ordering {items}[ for pickup on {day}][ in {city}][ under the name {name}].
        [{day}, ]{items}[, {city}][, {name}]
        Reserve {items}[ for {name}][, collection {day}][ in {city}].
        [It's {name} again, ]same as always, {items}[ to {city}][ on {day}]
        Is it possible to have {items}[ delivered to {city}][ by {day}]?[ Regards, {name}]
        I want to buy {items}.[ I am {name}.][ I live in {city}.][ Bring it {day}.]
        Add {items} to my account[ ({name})][, delivery to {city}][ on {day}].
        [Could {name} have ]{items}[ shipped to {city}][ for {day}]
        Set aside {items}[ for {name}][ until {day}][ at the shop in {city}].
        [Dear shop, I am {name}. ]Kindly supply {items}[ on {day}][ at {city}].
        we're out of stock, send {items}[ quick to {city}][ by {day}][ - {name}]
        [{city} branch: ]{items} please[, {day}][, {name} will sign]
        [Make sure {name} gets ]{items}[ on {day}][, the town is {city}]
        Quick one: {items}[, {city}][, on {day}][, for {name}].
        May I have {items}[, please post to {city}][, by {day} at the latest][, yours, {name}].
        Book {items}[ in for {day}][, name of {name}][, town of {city}].
        [Client {name}[ / {city}] / ]{items}[ / {day}]
        [Next delivery {day}. ]Items: {items}.[ Drop in {city}.][ Buyer: {name}.]
        yo can i get {items}[ dropped in {city}][ {day}][, names {name}]
        [{name} speaking, ]I would love {items}[ on {day}][, I'm based in {city}].
        I'm writing to request {items}[ for our {city} site][ on {day}][. Sincerely, {name}]
        Do you have {items}?[ Then send it to {city}][ on {day}][ for {name}].
        [The customer is {name}. ]They ask for {items}[ in {city}][ on {day}].
        Bring {items} along[ when you come to {city}][ on {day}][, says {name}].
        [{name} ordered ]{items}[ for {day}][, destination {city}].
        Need: {items}[; by: {day}][; to: {city}][; for: {name}]
        [For my sister {name}, ]{items}[, she is in {city}][, on {day}]
        [Parcel to {city}: ]{items}[, sender {name}][, leave on {day}]
        Hope you can do {items}[ by {day}][ for delivery in {city}].[ {name}]
        Morning! {items}[ for {day}][ to {city}][, this is {name}]
        [I'm {name}, and ]my shop wants {items}[ brought to {city}][ on {day}].
        I'd be glad of {items}[ on {day}][, mail it to {city}][, love {name}].
        [Bill {name}: ]{items}[, deliver in {city}][, {day}].
        [{day} delivery for {name}: ]{items}[, {city}]
        Tell the warehouse: {items}[ to {city}][, truck leaves {day}][, ref {name}].
        [Please note, {name} in {city} asked for ]{items}[, ready by {day}].
        How about {items}[ for {name}][ over in {city}][, say {day}]?
        I will need {items}.[ Use the name {name}.][ Take it to {city}.][ {day} works.]
        [Coming {day} ]I need {items}[ at my flat in {city}][, bell says {name}].
        Give me {items}[, {name} pays][, ships to {city}][, latest {day}]
        [{name} from {city}[, {day}]: ]{items}
        Our neighbour asked for {items}[, leave it with {name}][ in {city}][ on {day}].
        A guest of ours needs {items}[ at the hotel in {city}][ by {day}][, room of {name}].
        The kids want {items}[ on {day}][, bring it to {city}][, I am {name}].
        For the chef: {items}[, kitchen in {city}][, by {day}][, sign as {name}]
        The landlord wants {items}[ on {day}][ at the house in {city}][, his name is {name}].
        Good news, {name} is moving in[ on {day}] and wants {items}[, street in {city}].
        Could someone drop {items}[ at my aunt's in {city}][ on {day}][, ask for {name}]?
        [Hello from {city}, ]we ran out of {items}[, please come by {day}][, {name} signs].
        Same order for {name}: {items}[, {city}][, {day}].
        [{day} please: ]{items}[, that goes to {city}][, name on the box {name}].
        Pack up {items}[ for {name}][, courier to {city}][, pick up {day}].
        I think we will take {items}[, best day is {day}][, our town is {city}][, ask {name}].
        Get me {items}[, I'm staying in {city}][ until {day}][. {name} here].
        [Attn {name}: ]please confirm {items}[ to {city}][ on {day}].
        Order for the party: {items}[, party is in {city}][, host {name}][, on {day}].
        [Yes hello, {name} on the phone, ]we want {items}[ brought over to {city}][ by {day}].
        Write up {items}[ on the account of {name}][, freight to {city}][, due {day}].
        [The school in {city} ]needs {items}[ before {day}][, teacher {name}].
        {items} is all I want[, {name} collects it][ in {city}][ on {day}].
        My mother wants {items}[, she lives in {city}][, her name is {name}][, {day} please].
        Are there still {items} left?[ If so, post them to {city}][ for {name}][ by {day}].
        Restock: {items}[ > {city}][ > {day}][ > {name}]
        [Box 1, {name}: ]{items}[. Box goes to {city}][. Date: {day}]
        Find me {items}[ and get them to {city}][ by {day}][, bill {name}].
        I was told you sell {items}[, I'd want them on {day}][ in {city}][, {name}].
        [{name}'s order ]{items}[ must leave for {city}][ on {day}].
        Make it {items} this time[, to {name}][ down in {city}][, {day}].
        [Thanks for the call, {name} speaking. ]We agreed on {items}[ in {city}][ for {day}].
        Delivery note: {items}[ | {day}][ | {city}][ | {name}]
        Our club needs {items}[ at the hall in {city}][, {day} evening][, contact is {name}].
        [Our man {name} ]is asking for {items}[, deliver {day}][ around {city}].
        {items} would be great[, sometime {day}][, ship it over to {city}][. Yours truly, {name}]
        [It's for {name}. ]Please wrap {items}[ and mail them to {city}][ on {day}].
        [Dear team, ]our order: {items}.[ We are in {city}.][ {day} would do.][ Signed {name}]
        r u able to get {items}[ here in {city}][ by {day}], thx[, {name}]
        [hi its {name} ]pls send {items}[ 2morrow or {day}][, im in {city}]
        need {items} asap[, {city}][, {day}][, {name}]
        sending for {items}[, put {name} on the label][, bring them round to {city}][, {day} at noon].
        [Invoice to {name}. ]Goods: {items}.[ Unload in {city}.][ Unload on {day}.]
        [For delivery in {city}: ]{items}[, {name} opens the door][, come on {day}]
        [The wedding is on {day}, so ]we need {items}[ in {city}][, call {name}].
        [{name} has been waiting for ]{items}[ in {city}][ since you promised {day}].
        What would {items} cost?[ I want them in {city}][ on {day}][ for {name}].
        [Put {name} as the receiver. ]{items}[ must get to {city}][ before {day}].
        I dropped mine, so {items} again please[, {city} as before][, {day}][, {name}].
        Thank you for sending {items}[ to our store in {city}][ on {day}][, warmly, {name}].
        [Boss says {day} is fine: ]{items}[, town {city}][, name {name}].
        Would {items} be possible[ at short notice, {day}][, in {city}][, for {name}]?
        [Passing through {city} ]I'd pick up {items}[ on {day}][. Ask for {name}.]
        We're opening soon and want {items}[ at our {city} branch][ on {day}][, manager {name}].
        [Good evening, {name} here, ]{items}[ should reach us in {city}][ by {day}].
        Please deliver {items}[ no later than {day}][, street is in {city}][, ring at {name}].
        Take down {items}[, place {city}][, when {day}][, who {name}].
        [{city}, {day}. ]Please supply {items}.[ Kind wishes, {name}]
        A friend told me to order {items}[, send to {city}][, should be {day}][, friend is {name}].
        [{name} calls from {city}: ]{items}[, wanted {day}]
        [Second try. ]{items}[ go to {city}][ with {name}][ on {day}].
        Ship {items}[ ({day})][ ({city})][ ({name})]
        [Client: {name}. ][Place: {city}. ][Term: {day}. ]Goods wanted: {items}.
        I'd appreciate {items}[, the cottage is in {city}][, arrive {day}][, {name} is home].
        [Say hello to {name} and ]hand over {items}[ in {city}][ on {day}].
        Last week was lovely, now {items}[ for {day}][, still {city}][, still {name}].
        [My colleague {name} ]would like {items}[ on the desk by {day}][, office {city}].
        {items}[ / for {name}][ / in {city}][ / on {day}], cheers
        Have {items} sent[ to {name}][, who is in {city}][, around {day}].
        [If you come to {city} on {day}, ]bring {items}[ for {name}].
        [{name} will pay for ]{items}[, the van should be in {city}][ on {day}].
        The office wants {items}[, reception in {city}][, latest {day}][, hand to {name}].
        [Can {name} get ]{items}[ before {day}][, somewhere in {city}]?
        I am ordering {items}[ as a gift for {name}][, lives in {city}][, birthday is {day}].
        Please put {items} on the truck[ to {city}][ of {day}][, papers for {name}].
        [Yes, {name}, that's me, ]I'd have {items}[ shipped to {city}][ by {day}].
    """),
    inline_quantity=_lines("""
        , no, make that {new}
        , sorry, {new}
        (no, {new})
        - wait, {new}
        , I mean {new}
        , or rather {new}
        ... make it {new}
        , oops, {new}
        , no no, {new}
        , correction: {new}
        , ah, better {new}
        (scratch that, {new})
        - no, {new}
        , rather {new}
        , pardon, {new}
        , better say {new}
        (I meant {new})
        , not that many, {new}
        , hm, {new}
        , well, {new}
        , or let's say {new}
        / no, {new}
        , nope, {new}
        , forgive me, {new}
        , I should say {new}
        , wrong, {new}
        - better {new}
        , or no, {new}
        , change that, {new}
        , on reflection {new}
        (or better {new})
        , I take that back, {new}
    """),
    inline_value=_lines("""
        {old}, no, {new}
        {old}, sorry, {new}
        {old} - wait, {new}
        {old}, I mean {new}
        {old} (no, {new})
        {old}, or rather {new}
        {old}, oops, {new}
        not {old} but {new}
        {old}... make it {new}
        {old}, scratch that, {new}
        {new}, not {old}
        {new} (and not {old})
        {old} - no, {new}
        {old}, pardon, {new}
        {old}, rather {new}
        {old} (I meant {new})
        {old}, well, {new}
        {old} - correction, {new}
        {old}, hm, {new}
        {old}, or better {new}
        {new} instead of {old}
        {old} no wait {new}
    """),
    tail_quantity=_lines("""
        No, make the {things} {new}.
        Actually {new} {things}, not {old}.
        Sorry, I need {new} {things}.
        Change the {things} to {new}.
        Wait, {new} {things} instead of {old}.
        On the {things}: make it {new}.
        Correction, {things}: {new}.
        I meant {new} of the {things}.
        The {things} should be {new}.
        Hm, let's say {new} {things}.
        Please raise the {things} to {new}.
        I want {new} {things}, {old} was wrong.
        Oops, {new} {things}.
        Set the {things} at {new} please.
        As for the {things}, take {new}.
        It must be {new} {things}.
        Put down {new} for the {things}.
        Not {old} {things} but {new}.
        Pardon, {new} of the {things}.
        Better {new} {things}.
        Well, {new} {things} would be enough.
        Forget what I said, {new} {things}.
        The number of {things} is {new}.
        Of the {things} only {new}.
        You can make the {things} {new}.
        I said {old} {things} but need {new}.
        {new} {things}, please, and not {old}.
        With the {things} I was wrong, {new}.
        Lower the {things} to {new}.
        Turn {old} {things} into {new}.
        We counted again: {new} {things}.
        Ah no, {new} {things}.
        For the {things} I'd rather have {new}.
        The {things} have to be {new}.
        Update: {new} {things}.
        Could the {things} be {new}?
        I need the {things} {new} times.
        One change, {new} {things}.
        Nope, {new} {things}.
        {new} of the {things} and the rest as I said.
        The right number of {things} is {new}.
        Keep the order but with {new} {things}.
    """),
    tail_single=_lines("""
        No, make that {new}.
        Sorry, {new}.
        Actually {new}.
        Wait, better {new}.
        I meant {new}, not {old}.
        Change that to {new}.
        Oh, let's say {new}.
        {new} instead of {old}, please.
        Oops, {new}.
        Pardon, I need {new}.
        Better make it {new}.
        It must be {new}.
        No, {old} was wrong, {new}.
        Well, {new} would be enough.
        Hm, rather {new}.
        Not {old} but {new}.
        Let me have {new} of them.
        Put down {new} please.
        We counted again: {new}.
        Ah no, {new}.
        Update: {new}.
        Could it be {new}?
        Nope, {new}.
        The right number is {new}.
        I said {old} but need {new}.
        Turn {old} into {new}.
        One change, {new}.
        Forget {old}, {new} it is.
        {new} will be enough, not {old}.
        No no, {new} please.
        It has become {new}.
        I was wrong, {new}.
    """),
    tail_remove=_lines("""
        Scratch the {things}.
        No {things} after all.
        Actually, leave out the {things}.
        Sorry, forget the {things}.
        Cancel the {things}.
        Take the {things} off again.
        I don't need the {things} any more.
        But without the {things}.
        Oh, drop the {things}.
        The {things} can stay out.
        Never mind the {things}.
        Pardon, without the {things}.
        Remove the {things}, please.
        We have enough {things} already.
        Strike the {things}.
        Nobody wants the {things} now.
        Oops, not the {things}.
        Well, the {things} are not needed.
        All but the {things}.
        The {things} are off.
        Leave the {things} away.
        Erase the {things}.
        Everything except the {things}.
        Don't send the {things}.
        I changed my mind about the {things}, none of them.
        Minus the {things}.
        Ah, the {things} I don't want.
        Please keep the {things}.
        The {things} were a mistake.
        Kick out the {things}.
        Not the {things}, only the rest.
        The rest yes, the {things} no.
    """),
    tail_add=_lines("""
        Oh, and {phrase}.
        Add {phrase} too.
        Also {phrase}, please.
        I forgot: {phrase}.
        Plus {phrase}.
        And put {phrase} with it.
        Oh wait, {phrase} as well.
        Can I also have {phrase}?
        And {phrase}.
        Oops, {phrase} too.
        I also need {phrase}.
        Put in {phrase} as well.
        While you are at it, {phrase}.
        And don't forget {phrase}.
        Maybe {phrase} on top.
        Include {phrase}.
        Along with that, {phrase}.
        Pack {phrase} with them.
        We would like {phrase} in addition.
        And while I have you, {phrase}.
        As an extra {phrase}.
        {phrase} too, please.
        Could you add {phrase}?
        Make room for {phrase} as well.
        Not to forget {phrase}.
        Besides that, {phrase}.
        And one last wish: {phrase}.
        My wife also wants {phrase}.
        Put {phrase} on the list.
        Ah, {phrase} would be nice too.
        The order grows by {phrase}.
    """),
    tail_swap=_lines("""
        Swap the {things} for {phrase}.
        Instead of the {things}, send {phrase}.
        Replace the {things} with {phrase}.
        Actually {phrase} and not the {things}.
        Change the {things} into {phrase}.
        Rather {phrase} in place of the {things}.
        Not the {things}, {phrase}.
        Oops, {phrase} where I said the {things}.
        No {things}, but {phrase}.
        Give me {phrase} for the {things}.
        Exchange the {things} for {phrase}.
        The {things} should become {phrase}.
        Turn the {things} into {phrase}.
        Take {phrase} instead of the {things}.
        Pardon, {phrase}, not the {things}.
        Drop the {things}, take {phrase}.
        I'd rather have {phrase} than the {things}.
        The {things} are not needed, {phrase} is what I want.
        Where it says {things}, write {phrase}.
        Better {phrase} instead of the {things}.
        Substitute {phrase} for the {things}.
        Send {phrase} and leave the {things} out.
        I don't want the {things}, I want {phrase}.
        For the {things} put {phrase}.
        Let it be {phrase} in the place of the {things}.
        The {things} go, {phrase} come.
        Forget the {things} and pack {phrase}.
        If possible {phrase} instead of those {things}.
        We prefer {phrase} to the {things}.
        Cross out the {things}, write {phrase}.
        Not the {things} this time but {phrase}.
        Give {phrase}, not the {things}.
        Switch the {things} to {phrase}.
        Those {things}? Better {phrase}.
        Have the {things} replaced by {phrase}.
        Ah, {phrase} and no {things}.
    """),
    tail_day=_lines("""
        No, {new} instead of {old}.
        Sorry, make it {new}.
        Actually on {new}.
        Wait, {new} is better than {old}.
        Change the day to {new}.
        I meant {new}, not {old}.
        Oh, could it be {new}?
        Move it to {new}.
        Oops, {new}.
        Pardon, {new} and not {old}.
        It has to come on {new}.
        {old} is no good, take {new}.
        Better on {new}.
        Put it on {new} please.
        Well, {new} would be better.
        Not {old} but {new}.
        Let us say {new}.
        We are away on {old}, so {new}.
        Ah no, {new}.
        The day is {new}.
        {old} does not work, {new} does.
        We need it on {new} already.
        Let's say {new}.
        {new} is better than {old}.
        Move the date to {new}.
        It can wait until {new}.
        Update: {new}.
        Only {new} is possible.
    """),
    tail_name=_lines("""
        Sorry, the name is {new}, not {old}.
        No, it is for {new}.
        Put it under {new} instead of {old}.
        Wait, wrong name, {new}.
        I meant {new}, not {old}.
        Change the name to {new}.
        Actually {new} will get it.
        Oops, for {new}.
        Pardon, {new} and not {old}.
        {old} is away, so it goes to {new}.
        Write {new} instead of {old}.
        The right name is {new}.
        Not {old} but {new}.
        Give it to {new} please.
        Let {new} have it.
        It belongs to {new}, not {old}.
        The order is for {new}, not for {old}.
        Ah no, {new} takes it.
        {new} will be there, not {old}.
        Label it {new} please.
        I mixed them up, {new} is the one.
        Update: the name is {new}.
        Hand it to {new}, {old} is ill.
        Call it {new}.
        The receiver is {new}.
        Better {new} than {old}.
    """),
    tail_city=_lines("""
        Sorry, the city is {new}, not {old}.
        No, send it to {new}.
        Wait, {new} instead of {old}.
        I meant {new}, not {old}.
        Actually we moved to {new}.
        Change the city to {new}.
        The address is now in {new}.
        Oops, to {new}.
        Pardon, {new} and not {old}.
        Bring it to {new} instead.
        We are not in {old} but in {new}.
        Ship to {new} please.
        The right town is {new}.
        Let it go to {new}.
        It should reach {new}, not {old}.
        Post it to {new} rather.
        Ah no, {new}.
        The place is {new}.
        We have moved from {old} to {new}.
        Drive to {new} instead.
        Update: the city is {new}.
        It is {new}, {old} was last time.
        Forget {old}, we are in {new}.
        Please bring it to {new}.
        The address is in {new}.
        Better {new} than {old}.
    """),
    greetings=_list("Hi, Hello, Hey, Hi there, Good morning, Good evening, OK so, Hello again, Dear team, Please, Um"),
    first_names=_list("""
        Anna, Ben, Carla, David, Elif, Farid, Greta, Hassan, Ines, Jonas, Kemal, Lena, Marco, Nadia, Oscar, Paula,
        Quentin, Rosa, Samir, Tessa, Umar, Vera, Walter, Xenia, Yusuf, Zoe, Aiko, Bruno, Chidi, Dina, Emil, Fatima,
        Gustav, Hana, Igor, Julia, Kofi, Linh, Mateo, Nora, Olga, Pedro, Ravi, Sofia, Tom, Ursula, Viktor, Wanda,
        Yara, Zane, Alice, Boris, Clara, Diego, Eva, Felix, Gina, Hugo, Irene, Jack, Karim, Lucy, Milan, Nina,
        Otto, Priya, Ruth, Simon, Tara, Vince, Wei, Yoko, Amir, Bella, Colin, Daria, Ethan, Flora, George, Helen,
        Ivan, Jasmin, Kurt, Leila, Martin, Naomi, Owen, Petra, Ralph, Selma, Theo, Ulla, Viola, Wendy, Yannick, Zita,
        Adam, Beatrice, Carlos, Denise, Edward, Francesca, Gregor, Hilda, Ibrahim, Joseph, Kathleen, Leonard, Magdalena,
        Norbert, Oliver, Patricia, Rafael, Sabrina, Thomas, Ulrike, Vincent, William, Xavier, Yolanda, Abdul, Bettina,
        Christopher, Dorothy, Eduardo, Francis, Gloria, Henrik, Ingrid, Jennifer, Klaus, Laurence, Margaret, Natalie,
        Oswald, Penelope, Rebecca, Sebastian, Theresa, Victoria, Wolfgang, Alejandro, Barbara, Cristina, Dominic,
        Elisabeth, Florian, Gabriel, Hannah, Ignacio, Jeremy, Kristin, Lorena, Maurice, Natasha, Olivia, Priscilla,
        Roberto, Stella, Tobias, Vanessa, Andrea, Benjamin, Caroline, Donald, Emma, Frederick, Gerald, Humphrey,
        Jessica, Konrad, Louise, Michael, Nelson, Pamela, Robert, Sandra, Tatiana, Vladimir, Albert, Brigitte, Claudia,
        Derek, Eleanor, Fernando, Gwen, Howard, Isaac, Josephine, Keith, Lillian, Monica, Nathan, Rachel, Stuart,
        Timothy, Ahmed, Bogdan, Chloe, Deepak, Eugene, Grace, Hiroshi, Jamal, Kwame, Lakshmi, Mariam, Noor, Omar,
        Pavel, Rashid, Sanjay, Tariq, Usman, Vikram, Yasmin
    """),
    surnames=_list("""
        Meyer, Okafor, Rossi, Tanaka, Novak, Silva, Haddad, Larsen, Kowalski, Brown, Garcia, Singh, Petrov, Dubois,
        Nguyen, Murphy, Schmidt, Costa, Yilmaz, Khan, Berg, Moreau, Bianchi, Ito, Walker, Ahmed, Jansen, Lopez,
        Fischer, Papadakis, Green, Cohen, Weber, Sato, Popescu, Hughes, Anderson, Bakker, Carvalho, Davies, Eriksson,
        Fontaine, Gonzalez, Hoffmann, Ivanov, Johnson, Keller, Lambert, Martinez, Nielsen, Oliveira, Peterson, Quinn,
        Ramirez, Sanchez, Thompson, Vasquez, Williams, Yamamoto, Zimmermann, Andersson, Barbosa, Chen, Dimitrov,
        Edwards, Fernandez, Gupta, Harrison, Jackson, Kaplan, Lefevre, Mitchell, Nakamura, Olsen, Patel, Richards,
        Stewart, Torres, Vogel, Wagner
    """),
    titles=_list("Mr, Mrs, Dr"),
    cities=_list("""
        Oslo, Lima, Paris, Cairo, Porto, Quebec, Delhi, Leeds, Turin, Bonn, Ghent, Malmo, Osaka, Quito, Accra, Dublin,
        Lagos, Miami, Basel, Kyoto, Bergen, Denver, Havana, Izmir, Jakarta, Krakow, Lyon, Madrid, Nairobi, Odessa,
        Prague, Riga, Seoul, Tunis, Utrecht, Vienna, Warsaw, York, Zagreb, Athens, Boston, Cologne, Dallas, Essen,
        Florence, Geneva, Hamburg, Istanbul, Karachi, London, Munich, Naples, Oxford, Phoenix, Rome, Stockholm, Toronto,
        Venice, New York, San Diego, Cape Town, Hong Kong, Buenos Aires, Tel Aviv, Kuala Lumpur, Bath, Cork, Derby,
        Exeter, Graz, Hull, Inverness, Kiel, Linz, Mainz, Nice, Perth, Reims, Split, Trier, Ulm, Amsterdam, Barcelona,
        Copenhagen, Dortmund, Eindhoven, Fukuoka, Granada, Hannover, Indianapolis, Johannesburg, Kathmandu, Lausanne,
        Melbourne, Newcastle, Oakdale, Portland, Rochester, Salzburg, Tampere, Uppsala, Vancouver, Winnipeg, Adelaide,
        Baltimore, Cleveland, Damascus, Edmonton, Fairbanks, Gothenburg, Houston, Innsbruck, Jerusalem, Kingston,
        Lucerne, Montreal, Nottingham, Oakland, Philadelphia, Richmond, Sacramento, Thessaloniki, Verona, Washington,
        Atlanta, Bangkok, Cincinnati, Detroit, Fresno, Guadalajara, Hartford, Kansas City, Lancaster, Memphis,
        Nashville, Oakville, Pittsburgh, Rosario, Sheffield, Tucson, Albany, Birmingham, Chattanooga, Dundee, Fargo,
        Greenwich, Honolulu, Jacksonville, Lincoln, Manchester, Norwich, Plymouth, Savannah, Swansea, Tokyo, Beirut,
        Casablanca, Durban, Freiburg, Grenoble, Hyderabad, Kolkata, Leicester, Monaco, Nicosia, Pretoria, Sarajevo,
        Tehran, Windsor, Austin, Belgrade, Canberra, Dubai, Genoa, Hanoi, Ibiza, Lahore, Mumbai, Omaha, Pisa, Reno,
        Shanghai, Taipei, Tirana, Vilnius, Aachen, Bremen, Chester, Dover, Halifax, Ipswich, Jena, Bilbao, Toulouse
    """),
    adjectives=_list("""
        red, blue, small, large, green, wooden, copper, lemon, apple, rye, cotton, silver, paper, plastic, round,
        black, white, leather, garden, kitchen, glass, cheese, cherry, almond, wool, steel, folding, spare, yellow,
        oak, winter, rubber, chocolate, vanilla, carrot, onion, ginger, honey, brass, clay, grey, striped, long,
        short, heavy, light, old, cheap, thick, thin, butter, potato, salmon, tomato, velvet, marble, travel, desk
    """),
    nouns=_list("""
        tart, slice of bread, cup, chair, table, kettle, pen, notebook, candle, pillow, blanket, lamp, spoon, plate,
        bowl, hammer, rope, bucket, broom, hose, pie, cake, sandwich, muffin, pizza, soup, bagel, roll, cookie, pan,
        pot, mug, jug, towel, shirt, hat, scarf, glove, boot, belt, bag, box, basket, ladder, screw, nail, hinge,
        bulb, battery, cable, mouse pad, keyboard, monitor, folder, stapler, ruler, brush, sponge, mirror, clock,
        vase, frame, poster, ticket, stamp, envelope, bench, tent, torch, whistle, ball, kite, puzzle, drum, flute,
        melon, peach, pear, plum, cabbage, pumpkin, radish, walnut, cheesecake, tray, curtain, shovel, saw, drill
    """),
    containers=_list("bag, box, jar, crate, bottle, pack, tin, roll, bunch, case"),
    contents=_list("""
        rice, flour, olives, milk, apples, tea, soap, roses, tape, nails, coffee, sugar, juice, oranges, honey,
        salt, beans, paper, paint, grapes, cider, mustard, screws, candles, jam, noodles
    """),
    dates=tuple((month, day) for month in range(1, 13) for day in range(1, 29) if (month * 5 + day) % 4),
)

HELD_OUT = Words(
    frames=_lines("""
        Hello, {items} if you can[, bound for {city}][, must be here {day}][, {name} is the name].
        [Here is {name} with an order: ]{items}[, to reach {city}][ on {day}].
        What I need is {items}[ on {day}][, the parcel goes to {city}][, thank you, {name}].
        [A delivery for {name} please: ]{items}[, {city} is the place][, {day} the day].
        Please prepare {items}[ and carry them to {city}][ on {day}][, they are for {name}].
        [{name} would be happy with ]{items}[ arriving in {city}][ by {day}].
        Could you arrange {items}[ for {day}][, with delivery in {city}][, and write {name} on it]?
        Request from a customer: {items}[, deadline {day}][, location {city}][, person {name}].
        [Hey it's {name}, ]any chance of {items}[ getting to {city}][ on {day}]?
        I'm looking to purchase {items}[, arriving {day}][, final stop {city}][. Name's {name}]
        [In {city} ]we are short of {items}[, can you come {day}][, see {name}]?
        Next up: {items}[ / town {city}][ / date {day}][ / name {name}]
        Kindly pack {items}[ for {name}][ and forward to {city}][, {day} if possible].
        [{day} would suit me for ]{items}[, my street is in {city}][, {name}].
        [As discussed with {name}, ]please ship out {items}[ toward {city}][ on {day}].
        {items}, that's all[, take them to {name}][ near {city}][ on {day}].
        Fetch me {items}[ by {day}][, I stay in {city}][, my name would be {name}].
        [{name} ({city}) requests ]{items}[, not later than {day}].
        I could use {items}[ around here in {city}][, maybe {day}][, greetings from {name}].
        [Urgent for {day}: ]{items}[, receiver {name}][, to {city} please].
        My boss wants {items}[ in the {city} store][ come {day}][, invoice goes to {name}].
        [Hi from {city}! ]We'd love {items}[ on {day}][. Best, {name}]
        Note down {items}[, label it {name}][, haul it to {city}][, {day}].
        [The order of {name} is ]{items}[, to hand over {day}][ in {city}].
        So that's {items}[ for {day}][ out in {city}][, and the name, {name}].
        [We are expecting {name} on {day}, who needs ]{items}[ in {city}].
        Purchase order - {items}[ - {city}][ - {day}][ - {name}]
        can u send {items}[ 2 {city}][ on {day}][ thx {name}]
        [Hand this to {name}: ]{items}[, the drop point is {city}][, on {day}].
        Grateful for {items}[, you find us in {city}][, {day} would be perfect][. {name}]
    """),
    inline_quantity=_lines("""
        , actually {new}
        , no sorry, I want {new}
        (er, {new})
        - hang on, {new}
        , hmm, let it be {new}
        , that is, {new}
    """),
    inline_value=_lines("""
        {old}, actually {new}
        {old}, no sorry, {new}
        {old} - hang on, {new}
        {old} (er, {new})
        {old}, that is, {new}
        {new} rather than {old}
    """),
    tail_quantity=_lines("""
        Hang on, it has to be {new} {things}.
        Please bump the {things} to {new}.
        About the {things}: {new} will do, not {old}.
        My mistake, {new} {things}.
        Let me fix that: {new} {things}.
    """),
    tail_single=_lines("""
        Hang on, I want {new}.
        My mistake, {new} of them.
        Let me fix that: {new}, not {old}.
        On second thought {new}.
    """),
    tail_remove=_lines("""
        Please skip the {things}.
        On second thought, no {things}.
        Delete the {things} from this.
        We can do without the {things}.
    """),
    tail_add=_lines("""
        Throw in {phrase}.
        One more thing, {phrase}.
        Together with {phrase}.
        And we also want {phrase}.
    """),
    tail_swap=_lines("""
        Trade the {things} for {phrase}.
        In place of the {things} I want {phrase}.
        Make it {phrase} rather than the {things}.
    """),
    tail_day=_lines("""
        Hang on, {new} suits us better.
        My mistake, it is {new}, not {old}.
        Let's shift that to {new}.
        On second thought, {new}.
    """),
    tail_name=_lines("""
        My mistake, the person is called {new}, not {old}.
        Hang on, write {new} on it.
        Use {new} rather than {old} as the name.
    """),
    tail_city=_lines("""
        My mistake, it goes to {new}, not {old}.
        Hang on, {new} is the right city.
        Deliver it in {new} rather than {old}.
    """),
    greetings=_list("Good day, Hiya, Dear all, Well, Greetings"),
    first_names=_list("""
        Agnes, Bilal, Cedric, Dolores, Enzo, Freya, Gavin, Heidi, Ismail, Joanna, Katarina, Lorenzo, Miriam, Nikolai,
        Ophelia, Pascal, Ramona, Stefan, Tamara, Ulrich, Valeria, Winston, Yvonne, Zachary, Astrid, Bernard, Camille,
        Dmitri, Esther, Fiona, Gideon, Harriet, Isabel, Jerome, Kenji, Lydia, Mehmet, Noelle, Octavia, Philippa
    """),
    surnames=_list("""
        Adeyemi, Becker, Castillo, Demir, Evans, Ferrari, Gomez, Hansen, Iversen, Jovanovic, Kimura, Lindqvist,
        Mancini, Nowak, Ortega, Pereira
    """),
    titles=_list("Ms, Prof"),
    cities=_list("""
        Lisbon, Berlin, Chicago, Dakar, Edinburgh, Frankfurt, Glasgow, Helsinki, Kabul, Liverpool, Manila, Nantes,
        Ottawa, Palermo, Rotterdam, Seville, Tallinn, Valencia, Wellington, Zurich, Antwerp, Bristol, Cardiff, Dresden,
        Los Angeles, Santa Fe, Addis Ababa, Saint Louis, Leipzig, Marseille, Calgary, Brisbane
    """),
    adjectives=_list("""
        crimson, purple, tiny, golden, bamboo, linen, iron, mushroom, pepper, cinnamon, banana, foldable, ceramic,
        portable, square, waxed, summer, quilted, coconut, hazelnut, walking, nautical, camping, painted, smoked, pocket
    """),
    nouns=_list("""
        pretzel, croissant, teapot, stool, sofa, pencil, calendar, lantern, cushion, rug, fork, saucer, wrench, chain,
        barrel, mop, waffle, pancake, burger, jacket, sweater, sock, sandal, suitcase, magnet, pulley, charger, speaker,
        printer, eraser, comb, bracelet, necklace, flag, postcard, hammock, compass, violin, mango, turnip, apron,
        padlock, umbrella, thermometer
    """),
    containers=_list("sack, carton, can, tub, packet"),
    contents=_list("barley, lentils, lemonade, cement, tulips, raisins, yoghurt, pepper, cashews, gravel, cocoa, figs"),
    dates=tuple((month, day) for month in range(1, 13) for day in range(1, 29) if (month * 5 + day) % 4 == 0),
)
