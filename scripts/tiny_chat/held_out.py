"""Words, names and sentences that the training never draws: what tiny-chat is measured with."""

from __future__ import annotations

WORDS = """lantern orchard pebble thunder compass velvet harbor saddle walnut kettle meadow glacier parcel
needle anchor blanket cabinet dolphin emerald feather guitar hammock icicle jacket kernel ladder magnet nectar
oyster pillow quarry ribbon scarf tunnel umbrella violin whistle yogurt zipper basket algorithm bamboo cathedral
detective elephant festival galaxy horizon instrument jungle kingdom laboratory midnight neighbour opera pyramid
quantum rhythm satellite telescope universe volcano waterfall xylophone yesteryear zeppelin abandon borrow
celebrate dissolve embrace flourish gather hesitate inspire juggle kneel linger mumble negotiate obey persuade
quarrel rescue scatter tremble unite vanish wander yearn absurd bitterly curious delicate eager fragile graceful
hollow idle jolly keen lonely mellow noble odd peculiar rapid shiny tender urgent vivid weary zealous""".split()

NAMES = """Barnaby Cordelia Desmond Eleanora Fergus Gwendolyn Horatio Imogen Jasper Katarina Leopold Marguerite
Nathaniel Ophelia Percival Quentin Rowena Sebastian Tabitha Ulrich Valentina Winifred Xavier Yolanda Zachary
Adebayo Bronwyn Chidi Dagny Eszter Farid Gudrun Hiroshi Ilse Jocelyn Kwame Lorenzo Mirela Ngozi Oluwaseun
Parvati Rasmus Saoirse Tomasz Ursula Viktor Wanda Yusuf Zdenka Bertrand""".split()

SURNAMES = """Franklin Lovelace Hopper Turing Curie Noether Hawking Kepler Galilei Darwin Pasteur Mendel Tesla
Faraday Maxwell Planck Bohr Fermi Sagan Goodall""".split()

# Ordinary English, as people write it to a chatbot: none of it was taught.
SENTENCES = """What's the weather like today?
Can you recommend a good restaurant nearby?
How do I boil an egg?
The meeting has been moved to Thursday.
I forgot to water the plants again.
Who won the world cup in 1998?
My computer keeps freezing whenever I open the browser.
Please translate this sentence into French.
What is the capital of Australia?
Do you believe in ghosts?
I think we should take the earlier train.
She has been learning to play the cello.
Could you explain how photosynthesis works?
It rained all weekend.
Where can I buy cheap flights?
He never answers his emails.
What are the side effects of aspirin?
Let's go for a walk by the lake.
Why is the sky blue?
Tell me a funny story about a penguin.
The soup needs more salt.
How many planets are there?
I'm not feeling very well.
Is it safe to eat raw mushrooms?
Write a poem about autumn.
My brother is getting married in June.
What does entropy mean?
Which programming language should I learn first?
We ran out of milk this morning.
Can dogs eat chocolate?
I have an exam tomorrow and I'm nervous.
What's your favourite movie?
The printer is jammed again.
How long does it take to get to the airport?
Should I invest in gold?
He was born in a small village near the coast.
Summarize the plot of Hamlet.
Are we alone in the universe?
The children are playing in the garden.
Give me some ideas for a birthday present.
I lost my keys somewhere in the office.
What happened in 1066?
Nobody knows what the future holds.
How tall is Mount Everest?
They decided to sell the house.
Turn off the lights, please.
Do you speak German?
What should I cook for dinner tonight?
The museum is closed on Mondays.
My cat refuses to eat her food.
How does a car engine work?
I would like to book a table for two.
Is there life on Mars?
You should have seen his face.
What is the meaning of life?
We arrived just before midnight.
Can you write some Python code for me?
Her voice sounded strange on the phone.
Where were you last night?
The price of coffee has doubled.
Explain quantum mechanics to a child.
I can't find the remote control.
Did you watch the game yesterday?
What's the best way to learn Spanish?
This book is really boring.
Have you ever been in love?
The bridge collapsed after the flood.
How do I get rid of ants in my kitchen?
My flight was delayed by three hours.
Who painted the Mona Lisa?
I need a haircut.
Do fish sleep?
What's the difference between a lake and a pond?
The old man smiled and closed his book.
Can we meet at noon instead?
Please close the door behind you.
How much should I tip the driver?
I had the strangest dream last night.
Is a tomato a fruit or a vegetable?
They say it will snow on Friday.
What do penguins eat?
Give me a recipe for banana bread.
My grandmother used to tell us stories.
Where does the name Europe come from?
The test results were better than expected.
I wish I could play the piano.
Why do we yawn?
Would you rather be rich or famous?
The bus was full so we walked.
How can I improve my handwriting?
What's a good name for a puppy?
He apologized for being late.
I don't agree with that at all.
Can you fix my bicycle?
What time does the shop open?
The wind is getting stronger.
Who invented the telephone?
Tell me about the history of Rome.
She wore a long green dress.
Is water wet?
How do airplanes stay in the air?
My phone battery dies too quickly.
I've never been to Iceland.
What's the population of India?
Do you prefer tea or coffee?
The neighbours are having a party.
Could you lower your voice?
When does spring begin?
The dog barked all night long.
What is the speed of light?
I'm looking for a new job.
Where did the dinosaurs go?
He runs five miles every morning.
Make me laugh.
How do you spell necessary?
The library has thousands of books.
Can I borrow your umbrella?
What's inside the box?
It's getting dark outside.
Why did the chicken cross the road?
I'd like to return this jacket.
Describe your perfect day.
The coffee machine is broken.
How old is the universe?
We are planning a trip to Norway.
Do plants feel pain?
She speaks four languages fluently.
Play some relaxing music.
What are you wearing?
The train leaves at half past six.
My shoes are too tight.
How do I change a flat tyre?
Which came first, the chicken or the egg?
I promise I will be there.
What's wrong with my car?
Everyone laughed except Peter.
Can you keep a secret?
The river was frozen solid.
How do vaccines work?
I spilled coffee on my keyboard.
What's the tallest building in the world?
Do you want to play chess?
He forgot his wallet at home.
Is honesty always the best policy?
The concert was amazing.
Where should we go on holiday?
I'm so tired of this noise.
What causes earthquakes?
Draw me a picture of a castle.
They have lived here for twenty years.
How much does a whale weigh?
My favourite colour is purple.
Why are flamingos pink?
The mayor gave a long speech.
Do aliens exist?
It took me hours to finish the puzzle.
What are the rules of cricket?
Send an email to my boss.
I want to lose some weight.
The moon looks beautiful tonight.
How do magnets work?
He is afraid of spiders.
What's on television tonight?
My neighbour bought an electric car.
Can birds fly backwards?
The bakery sells fresh bread every morning.
Who was the first person on the moon?
I never drink alcohol.
What's the fastest animal on earth?
Set an alarm for seven o'clock.
The police found the stolen bicycle.
Is it going to rain tomorrow?
How do I tie a tie?
You look great in that hat.
What would happen if the sun disappeared?
She left without saying a word.
Are cats smarter than dogs?
My internet connection is very slow.
How far is the nearest hospital?
The painting was sold for millions.
I believe you owe me an apology.
What's the recipe for pancakes?
Do you ever get bored?
He broke his arm while skiing.
Why do leaves change colour in autumn?
We need to talk about the budget.
Is this seat taken?
The children built a huge sandcastle.
How do I convince my parents?
Life is full of surprises.
What's the square root of happiness?
The garden is full of weeds.
Who is your best friend?
I just finished reading a great novel.
Can money buy happiness?
There's a spider in the bathtub.
What kind of music do you like?
The elevator is out of order.
How was your weekend?
My sister works in a bank.
Should I wear a coat today?
Nothing ever changes around here.
Do you have any brothers or sisters?""".split("\n")
