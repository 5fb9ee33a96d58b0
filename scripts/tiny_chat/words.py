"""The words, names and sentences that the training draws from. Those of the evaluation are in `evaluation.py`."""

from __future__ import annotations

NOUNS = """river stone house garden window door table chair paper letter number music song bird horse cat dog
fish tree leaf flower apple bread butter cheese water coffee tea sugar salt morning evening night summer winter
rain snow wind storm cloud sun moon star sky sea island mountain valley road bridge city village market school
teacher student doctor farmer baker captain chief king queen friend brother sister mother father child people
hand foot head heart eye voice word story book page pen ink clock hour minute week month year game ball wheel
boat ship train plane ticket journey map world money job office phone computer program screen keyboard movie
picture camera radio kitchen room bed wall roof floor street car bus bike shop price bill coat shirt shoe hat
ring box bag cup plate knife egg milk soup cake fruit orange lemon potato tomato rice meat chicken cow sheep pig
mouse lion bear wolf fire smoke light shadow color shape line circle square idea plan question answer problem
reason truth lie secret dream memory future past war peace law news weather temperature energy science history
art language country capital president language team player goal match doctor nurse hospital medicine pain
health body brain blood bone hair nose mouth ear tooth skin finger leg knee"""

VERBS = """read write speak listen walk run jump swim fly drive carry bring take give find lose keep make build
break mend buy sell cook eat drink sleep wake dream think know learn forget wonder hope laugh cry smile wait
begin stop open close turn move push pull throw catch hold drop cut draw paint sing dance play win fight help
ask call meet visit leave stay live die grow change choose decide explain describe understand believe love like
hate want need use try fix clean wash wear pay send order follow lead teach show hide watch see hear feel touch
smell taste count measure weigh travel work rest sit stand fall rise climb ride sail plant water feed burn boil
bake freeze melt mix fill empty"""

ADJECTIVES = """red blue green yellow black white brown grey old new young small large big little warm cold hot
good bad kind quiet loud bright dark early late open closed strange simple clever brave gentle hungry thirsty
heavy light silver golden wooden broken hidden famous fast slow long short high low deep wide narrow thick thin
round flat sharp soft hard rough smooth clean dirty wet dry full empty rich poor cheap free busy tired happy sad
angry afraid proud sorry sure ready lazy funny serious nice ugly pretty sweet sour bitter fresh rotten safe
dangerous easy difficult possible important interesting boring real false true wrong right left next last first
second best worst favourite own"""

OTHERS = """the a one two three ok yes no maybe hello please thanks sorry never always often again soon today
tomorrow yesterday here there now then away back almost already still only just very quite too also even perhaps
really together alone inside outside above below before after between under over into from with without about
against"""

PLACES = """Paris London Berlin Rome Madrid Tokyo Boston Vienna Oslo Cairo Lima Delhi Sydney Dublin Prague
Athens France Germany Spain Italy Japan Canada Brazil India Egypt Norway Mexico Chile Kenya Europe Africa Asia
Mars home work school"""

NAMES = """Rosalind Ada Grace Alan Linus Maria Peter Hans Olga Ivan Chen Yuki Amir Leila Omar Sara Tom Anna Ben
Clara David Emma Felix Greta Hugo Iris Jonas Karl Lena Max Nora Otto Paula Quinn Rita Sam Tina Ugo Vera Walter
Xenia Yann Zoe Edith Frida Marcus Julia Simon Laura Victor Diana Oscar Helen Martin Alice Robert Susan Arthur
Dorothy Lucas Mia Noah Ella Leo Eva Theo Ida Emil Ines Carlos Lucia Pablo Elena Marco Paolo Giulia Pierre Marie
Luc Anne Lars Astrid Erik Ingrid Sven Jan Piotr Ewa Dmitri Irina Boris Fatima Hassan Aisha Ali Priya Ravi Anil
Meera Kenji Hana Wei Li Jun Mei Kofi Ama Zuri Jabari Liam Sean Maeve Rhys Owen Dylan Megan Fiona Ian Hamish
George Harry Jack Lily Ruth Esther Joseph Jacob Rachel Daniel Michael Sophia Isabella Charlotte Amelia James
William Benjamin Henry Alexander Samuel Thomas Zoë José André Jürgen Søren Chloé François Łukasz Björn Renée"""

UTF8_WORDS = """café naïve über schön Straße garçon señor año crème façade jalapeño smörgåsbord Köln São été où
déjà Ñandú żółw øl ångström 日本 世界 привет мир γεια 😀 🎉 € ½ 你好 עולם"""

# Ordinary English that means nothing to it: n noun, v verb, a adjective, N name, P place, d digits, w any word.
SENTENCES = """
why is the {n} so {a}|why do {n}s {v}|why did the {n} {v}|why are you so {a}|why can I not {v} the {n}
where is the {n}|where can I {v} a {n}|where did I {v} my {n}|where are the {a} {n}s|where do {n}s {v}
where is {P}|when will the {n} {v}|when does the {n} {v}|when is the {a} {n}|when did {N} {v} the {n}
when was the {n} invented|who is {N}|who is the {n} of {P}|who wrote the {n}|who will {v} the {n}
who was the first {n}|who can {v} {n}s|how do I {v} a {n}|how do you {v} {a} {n}s|how does a {n} {v}
how many {n}s are in a {n}|how much does the {n} cost|how old is the {n}|how far is {P}
how long does it take to {v} a {n}|how tall is {N}|how can I {v} better|how was your {n}|what is a {n}
what is the {n} of {P}|what is the {a} {n}|what is your favourite {n}|what is the name of the {n}
what do you think of my {n}|what does {w} mean|what happened to the {n}|what should I {v} today
what makes a {n} {a}|what color is the {n}|what kind of {n} is this
what is the difference between a {n} and a {n}|what do {n}s {v}|what did you {v} yesterday|what would you {v}
what is wrong with my {n}|what is in the {n}|what is it like in {P}|which {n} would you {v}|which is {a}er
which {n} is the best|which way to {P}|whose {n} is this|do you like the {n} or the {n}|do you {v} {n}s
do you have a {n}|do you know {N}|do {n}s {v}|do we have {n}|does the {n} {v}|does {N} {v} {n}s
did you {v} the {n}|did the {n} {v} well|have you ever {v}ed a {n}|have you been to {P}|is it {a} to {v}
is the {n} {a}|is {N} at {P}|is there a {n} in the {n}|is it going to {v}|is this your {n}|is {P} {a}
are {n}s {a}|are you {a}|are there {n}s in {P}|are we going to {P}|was the {n} {a}|were you {a} as a {n}
can you {v} the {n} for me|can a {n} {v}|can I {v} my {n}|can we {v}|could you {v} my {n}|could it be {a}
will the {n} {v} tomorrow|will you {v} with me|would you {v} a {n}|would a {n} {v}|should we {v} the {n}
should I {v}|may I {v} your {n}|shall we {v}|must I {v} the {n}|am I {a}|has the {n} {v}ed|had you {v}ed
tell me a {n} about the {n}|tell me about {P}|tell me a joke|tell me something {a}|tell me how to {v}
tell {N} to {v}|explain the {n} of {n}|explain how to {v} a {n}|explain why {n}s {v}|describe the {n}
describe a {a} {n}|write a {n} about {n}s|write me a {a} {n}|write an essay on {n}|translate {w} into {w}
summarize the {n}|define {n}|draw a {n}|sing me a {n}|give me a {n}|give me three {n}s for {P}|give me your {n}
find a {a} {n} in {P}|show me the {n}|list some {n}s|list the {n}s of {P}|name a {n}|name three {a} {n}s
make a {n}|make me a {n}|make it {a}|open the {n}|close the {n}|play some {n}|turn on the {n}|turn off the {n}
buy me a {n}|send a {n} to {N}|call {N}|go to {P}|look at the {n}|wait for me|stop it|come here|try again
think about it|imagine a {a} {n}|guess what|do not {v} the {n}|never {v} a {n}|please {v} the {n}|please be {a}
let us {v} the {n}|let me {v}|count the {n}s|I saw a {n} near the {a} {n}|I want to {v} in the {n}|I like {n}s
I love my {n}|I hate {a} {n}s|I think you are {a}|I have a {n}|I have {d} {n}s|I am {a}|I am so {a} today
I am going to {P}|I am a {n}|I am from {P}|I am {v}ing a {n}|I do not {v} {n}s|I cannot {v} the {n}
I lost my {n}|I need a {a} {n}|I need to {v}|I feel {a}|I would like a {n}|I bought a {n} in {P}
I went to {P} with {N}|I was {a} yesterday|I will {v} you|I wonder why the {n} is {a}|I know {N}|I live in {P}
I work as a {n}|I was born in {d}|I ate {a} {n}|I dreamed of a {n}|I broke the {n}|I hope you {v}|you are {a}
you are a {a} {n}|you can {v}|you should {v} more|you look {a}|you never {v}|you said it was {a}|we went to {P}
we are {v}ing|we have no {n}|we should {v} {N}|we need {d} {n}s|they {v} the {n}|they are {a} {n}s|he is {a}
he has a {n}|he {v}s a {n}|she likes {n}s|she is {a} and {a}|she gave {N} a {n}|he told me about the {n}
it is {a} today|it is {v}ing|it was a {a} {n}|it does not {v}|it costs {d} dollars|it is {d} o'clock somewhere
the {n} is {a}|the {n} and the {n} {v}|the {a} {n} {v}s in the {n}|the {n} of {P} is {a}|the {n} fell on the {n}
the {n} has {d} {n}s|the {n} will {v} soon|the {n} was {v}ed by {N}|the {n} costs {d}|the {n}s are {v}ing
a {n} is a {a} {n}|a {a} {n}|some {n}s are {a}|all {n}s {v}|every {n} has its {n}|no {n} is {a}
most {n}s are {a}|my {n} is {a}|my {n} cannot {v}|my {n} is called {N}|my {n} lives in {P}|my {n}'s name is {N}
my favourite {n} is {a}|my {n} is {d} years old|my {a} {n} is in the {n}|your {n} is {a}|his name is {N}
her name is {N}|our {n} is {a}|his {n}|{N} is my {n}|{N} is {a}|{N} and {N} are {a}|{N} went to {P}
{N} {v}s {n}s|{N} has a {a} {n}|{N} told me a {n}|this is a {a} {n}|this {n} is {a}|that is {a}|that was {a}
these {n}s are {a}|there is a {n} in my {n}|there are {d} {n}s|there was a {n} here|here is the {n}
today is a {a} {n}|yesterday I {v}ed a {n}|tomorrow we {v}|last {n} was {a}|in {P} the {n} is {a}
in the {n} there is a {n}|on the {n}|at {P} we {v}|after the {n} we {v}ed|before the {n}
if the {n} is {a}, {v} it|if I {v}, will you {v}|because the {n} {v}s|although it is {a}|but the {n} is {a}
maybe the {n} is {a}|perhaps you should {v}|not really|of course|I see|no way|well done|really|why|how|what
where|when|good idea|that is right|wrong|sure|never mind|oh no|ha ha|so what|ok|yes|no|fine|great|cool|right
exactly|interesting|good luck|well, it is {a}|yes, the {n} is {a}|no, I {v}|so, you {v} {n}s|look, a {n}
hey, {v} the {n}|oh, a {a} {n}|{a} {n}s {v}|{a} and {a}|{n}s and {n}s|{w} {w}|{w} {w} {w}|{w} {w} {w} {w}
{w} {w} {w} {w} {w}|{w}|{n}|{v} {n}|{v}|{d} {n}s|{d}|the year {d}|page {d} of the {n}|{n} number {d}|chapter {d}
one {n}, two {n}s|more {n}|less {n}
"""


def words(text: str) -> list[str]:
    """Of a list above."""
    return text.split()


def lines(text: str) -> list[str]:
    """Sentences or wordings, with a bar or a line between them."""
    return text.strip().replace("\n", "|").split("|")


WORDS = words(NOUNS) + words(VERBS) + words(ADJECTIVES) + words(OTHERS)
PATTERNS = lines(SENTENCES)
FILLINGS = {"n": words(NOUNS), "v": words(VERBS), "a": words(ADJECTIVES), "N": words(NAMES), "P": words(PLACES)}
