"""The names of classes of the data sets that have hundreds of them, in their order."""


def names(text: str) -> tuple[str, ...]:
    """What stands between semicolons."""
    return tuple(" ".join(name.split()) for name in text.split(";"))


AUDIOSET = names(  # 527, display names of the AudioSet ontology (CC BY-SA 4.0)
    """
    Speech; Male speech, man speaking; Female speech, woman speaking; Child speech, kid speaking; Conversation;
    Narration, monologue; Babbling; Speech synthesizer; Shout; Bellow; Whoop; Yell; Battle cry; Children shouting;
    Screaming; Whispering; Laughter; Baby laughter; Giggle; Snicker; Belly laugh; Chuckle, chortle; Crying,
    sobbing; Baby cry, infant cry; Whimper; Wail, moan; Sigh; Singing; Choir; Yodeling; Chant; Mantra; Male
    singing; Female singing; Child singing; Synthetic singing; Rapping; Humming; Groan; Grunt; Whistling;
    Breathing; Wheeze; Snoring; Gasp; Pant; Snort; Cough; Throat clearing; Sneeze; Sniff; Run; Shuffle; Walk,
    footsteps; Chewing, mastication; Biting; Gargling; Stomach rumble; Burping, eructation; Hiccup; Fart; Hands;
    Finger snapping; Clapping; Heart sounds, heartbeat; Heart murmur; Cheering; Applause; Chatter; Crowd; Hubbub,
    speech noise, speech babble; Children playing; Animal; Domestic animals, pets; Dog; Bark; Yip; Howl; Bow-wow;
    Growling; Whimper (dog); Cat; Purr; Meow; Hiss; Caterwaul; Livestock, farm animals, working animals; Horse;
    Clip-clop; Neigh, whinny; Cattle, bovinae; Moo; Cowbell; Pig; Oink; Goat; Bleat; Sheep; Fowl; Chicken, rooster;
    Cluck; Crowing, cock-a-doodle-doo; Turkey; Gobble; Duck; Quack; Goose; Honk; Wild animals; Roaring cats (lions,
    tigers); Roar; Bird; Bird vocalization, bird call, bird song; Chirp, tweet; Squawk; Pigeon, dove; Coo; Crow;
    Caw; Owl; Hoot; Bird flight, flapping wings; Canidae, dogs, wolves; Rodents, rats, mice; Mouse; Patter; Insect;
    Cricket; Mosquito; Fly, housefly; Buzz; Bee, wasp, etc.; Frog; Croak; Snake; Rattle; Whale vocalization; Music;
    Musical instrument; Plucked string instrument; Guitar; Electric guitar; Bass guitar; Acoustic guitar; Steel
    guitar, slide guitar; Tapping (guitar technique); Strum; Banjo; Sitar; Mandolin; Zither; Ukulele; Keyboard
    (musical); Piano; Electric piano; Organ; Electronic organ; Hammond organ; Synthesizer; Sampler; Harpsichord;
    Percussion; Drum kit; Drum machine; Drum; Snare drum; Rimshot; Drum roll; Bass drum; Timpani; Tabla; Cymbal;
    Hi-hat; Wood block; Tambourine; Rattle (instrument); Maraca; Gong; Tubular bells; Mallet percussion; Marimba,
    xylophone; Glockenspiel; Vibraphone; Steelpan; Orchestra; Brass instrument; French horn; Trumpet; Trombone;
    Bowed string instrument; String section; Violin, fiddle; Pizzicato; Cello; Double bass; Wind instrument,
    woodwind instrument; Flute; Saxophone; Clarinet; Harp; Bell; Church bell; Jingle bell; Bicycle bell; Tuning
    fork; Chime; Wind chime; Change ringing (campanology); Harmonica; Accordion; Bagpipes; Didgeridoo; Shofar;
    Theremin; Singing bowl; Scratching (performance technique); Pop music; Hip hop music; Beatboxing; Rock music;
    Heavy metal; Punk rock; Grunge; Progressive rock; Rock and roll; Psychedelic rock; Rhythm and blues; Soul
    music; Reggae; Country; Swing music; Bluegrass; Funk; Folk music; Middle Eastern music; Jazz; Disco; Classical
    music; Opera; Electronic music; House music; Techno; Dubstep; Drum and bass; Electronica; Electronic dance
    music; Ambient music; Trance music; Music of Latin America; Salsa music; Flamenco; Blues; Music for children;
    New-age music; Vocal music; A capella; Music of Africa; Afrobeat; Christian music; Gospel music; Music of Asia;
    Carnatic music; Music of Bollywood; Ska; Traditional music; Independent music; Song; Background music; Theme
    music; Jingle (music); Soundtrack music; Lullaby; Video game music; Christmas music; Dance music; Wedding
    music; Happy music; Funny music; Sad music; Tender music; Exciting music; Angry music; Scary music; Wind;
    Rustling leaves; Wind noise (microphone); Thunderstorm; Thunder; Water; Rain; Raindrop; Rain on surface;
    Stream; Waterfall; Ocean; Waves, surf; Steam; Gurgling; Fire; Crackle; Vehicle; Boat, Water vehicle; Sailboat,
    sailing ship; Rowboat, canoe, kayak; Motorboat, speedboat; Ship; Motor vehicle (road); Car; Vehicle horn, car
    horn, honking; Toot; Car alarm; Power windows, electric windows; Skidding; Tire squeal; Car passing by; Race
    car, auto racing; Truck; Air brake; Air horn, truck horn; Reversing beeps; Ice cream truck, ice cream van; Bus;
    Emergency vehicle; Police car (siren); Ambulance (siren); Fire engine, fire truck (siren); Motorcycle; Traffic
    noise, roadway noise; Rail transport; Train; Train whistle; Train horn; Railroad car, train wagon; Train wheels
    squealing; Subway, metro, underground; Aircraft; Aircraft engine; Jet engine; Propeller, airscrew; Helicopter;
    Fixed-wing aircraft, airplane; Bicycle; Skateboard; Engine; Light engine (high frequency); Dental drill,
    dentist's drill; Lawn mower; Chainsaw; Medium engine (mid frequency); Heavy engine (low frequency); Engine
    knocking; Engine starting; Idling; Accelerating, revving, vroom; Door; Doorbell; Ding-dong; Sliding door; Slam;
    Knock; Tap; Squeak; Cupboard open or close; Drawer open or close; Dishes, pots, and pans; Cutlery, silverware;
    Chopping (food); Frying (food); Microwave oven; Blender; Water tap, faucet; Sink (filling or washing); Bathtub
    (filling or washing); Hair dryer; Toilet flush; Toothbrush; Electric toothbrush; Vacuum cleaner; Zipper
    (clothing); Keys jangling; Coin (dropping); Scissors; Electric shaver, electric razor; Shuffling cards; Typing;
    Typewriter; Computer keyboard; Writing; Alarm; Telephone; Telephone bell ringing; Ringtone; Telephone dialing,
    DTMF; Dial tone; Busy signal; Alarm clock; Siren; Civil defense siren; Buzzer; Smoke detector, smoke alarm;
    Fire alarm; Foghorn; Whistle; Steam whistle; Mechanisms; Ratchet, pawl; Clock; Tick; Tick-tock; Gears; Pulleys;
    Sewing machine; Mechanical fan; Air conditioning; Cash register; Printer; Camera; Single-lens reflex camera;
    Tools; Hammer; Jackhammer; Sawing; Filing (rasp); Sanding; Power tool; Drill; Explosion; Gunshot, gunfire;
    Machine gun; Fusillade; Artillery fire; Cap gun; Fireworks; Firecracker; Burst, pop; Eruption; Boom; Wood;
    Chop; Splinter; Crack; Glass; Chink, clink; Shatter; Liquid; Splash, splatter; Slosh; Squish; Drip; Pour;
    Trickle, dribble; Gush; Fill (with liquid); Spray; Pump (liquid); Stir; Boiling; Sonar; Arrow; Whoosh, swoosh,
    swish; Thump, thud; Thunk; Electronic tuner; Effects unit; Chorus effect; Basketball bounce; Bang; Slap, smack;
    Whack, thwack; Smash, crash; Breaking; Bouncing; Whip; Flap; Scratch; Scrape; Rub; Roll; Crushing; Crumpling,
    crinkling; Tearing; Beep, bleep; Ping; Ding; Clang; Squeal; Creak; Rustle; Whir; Clatter; Sizzle; Clicking;
    Clickety-clack; Rumble; Plop; Jingle, tinkle; Hum; Zing; Boing; Crunch; Silence; Sine wave; Harmonic; Chirp
    tone; Sound effect; Pulse; Inside, small room; Inside, large room or hall; Inside, public space; Outside, urban
    or manmade; Outside, rural or natural; Reverberation; Echo; Noise; Environmental noise; Static; Mains hum;
    Distortion; Sidetone; Cacophony; White noise; Pink noise; Throbbing; Vibration; Television; Radio; Field
    recording
    """
)

FSD50K = names(  # 200, of the same ontology
    """
    Whispering; Gunshot, gunfire; Pour; Wind chime; Livestock, farm animals, working animals; Crackle; Waves, surf;
    Chicken, rooster; Chatter; Keyboard (musical); Bark; Rail transport; Gong; Shatter; Ratchet, pawl; Clapping;
    Mallet percussion; Whoosh, swoosh, swish; Speech synthesizer; Respiratory sounds; Sliding door; Boat, Water
    vehicle; Boiling; Human voice; Drip; Thunderstorm; Male singing; Sneeze; Hi-hat; Guitar; Crying, sobbing;
    Speech; Slam; Crack; Yell; Drawer open or close; Run; Cheering; Splash, splatter; Tabla; Sigh; Packing tape,
    duct tape; Raindrop; Cymbal; Fill (with liquid); Harp; Squeak; Zipper (clothing); Tearing; Alarm; Skateboard;
    Wind instrument, woodwind instrument; Chink, clink; Wind; Ringtone; Microwave oven; Power tool; Dishes, pots,
    and pans; Musical instrument; Door; Domestic sounds, home sounds; Subway, metro, underground; Glockenspiel;
    Female speech, woman speaking; Coin (dropping); Mechanical fan; Male speech, man speaking; Crowd; Screech;
    Animal; Human group actions; Telephone; Tools; Giggle; Crushing; Thump, thud; Hammer; Engine; Cupboard open or
    close; Glass; Writing; Clock; Plucked string instrument; Fowl; Water tap, faucet; Knock; Trickle, dribble;
    Rattle; Conversation; Accelerating, revving, vroom; Fixed-wing aircraft, airplane; Screaming; Walk, footsteps;
    Stream; Printer; Traffic noise, roadway noise; Motorcycle; Water; Scratching (performance technique); Tap;
    Percussion; Chuckle, chortle; Motor vehicle (road); Crow; Vehicle horn, car horn, honking; Bird vocalization,
    bird call, bird song; Drill; Race car, auto racing; Meow; Bass drum; Drum kit; Wild animals; Crash cymbal;
    Cough; Typing; Bowed string instrument; Computer keyboard; Vehicle; Train; Applause; Bicycle; Tick; Drum;
    Burping, eructation; Bicycle bell; Cowbell; Accordion; Toilet flush; Purr; Church bell; Cat; Insect; Engine
    starting; Chewing, mastication; Sink (filling or washing); Dog; Bird; Finger snapping; Child speech, kid
    speaking; Wood; Music; Sawing; Bell; Fireworks; Crumpling, crinkling; Ocean; Gurgling; Fart; Mechanisms;
    Acoustic guitar; Singing; Boom; Bus; Cutlery, silverware; Liquid; Explosion; Gull, seagull; Thunder; Siren;
    Marimba, xylophone; Female singing; Tick-tock; Frog; Frying (food); Buzz; Car passing by; Electric guitar;
    Gasp; Rattle (instrument); Piano; Doorbell; Chime; Car; Fire; Trumpet; Truck; Hands; Domestic animals, pets;
    Chirp, tweet; Breathing; Cricket; Tambourine; Bass guitar; Idling; Scissors; Rain; Strum; Shout; Keys jangling;
    Camera; Hiss; Growling; Snare drum; Brass instrument; Bathtub (filling or washing); Typewriter; Aircraft;
    Organ; Laughter; Harmonica
    """
)

VGGSOUND = names(  # 309, of the published list
    """
    people crowd; playing mandolin; pumping water; horse neighing; airplane flyby; playing drum kit; pheasant
    crowing; duck quacking; wood thrush calling; dog bow-wow; arc welding; writing on blackboard with chalk;
    forging swords; swimming; bee, wasp, etc. buzzing; child singing; mouse clicking; playing trombone; telephone
    bell ringing; beat boxing; cattle mooing; lions roaring; ambulance siren; gibbon howling; people sniggering;
    playing clarinet; playing bassoon; playing bongo; playing electric guitar; playing badminton; bull bellowing;
    cat caterwauling; playing sitar; whale calling; snake hissing; people burping; francolin calling; fireworks
    banging; driving buses; people belly laughing; chicken clucking; playing double bass; canary calling; people
    battle cry; male singing; horse clip-clop; baby crying; cow lowing; reversing beeps; otter growling; cheetah
    chirrup; people running; ice cream truck, ice cream van; playing harpsichord; heart sounds, heartbeat; pig
    oinking; police radio chatter; cat hissing; wind chime; elk bugling; lions growling; fly, housefly buzzing;
    ferret dooking; railroad car, train wagon; church bell ringing; cat meowing; wind rustling leaves; bouncing on
    trampoline; mouse squeaking; sheep bleating; people eating crisps; people sneezing; playing squash; footsteps
    on snow; people humming; tap dancing; snake rattling; elephant trumpeting; people booing; disc scratching;
    skidding; cupboard opening or closing; playing bagpipes; basketball bounce; chinchilla barking; parrot talking;
    woodpecker pecking tree; fire truck siren; slot machine; playing french horn; air conditioning noise; people
    finger snapping; eagle screaming; playing harmonica; playing tympani; zebra braying; hedge trimmer running;
    playing acoustic guitar; hair dryer drying; orchestra; playing darts; children shouting; people slurping;
    alligators, crocodiles hissing; mouse pattering; people marching; vehicle horn, car horn, honking; sea lion
    barking; people clapping; hail; fire crackling; bathroom ventilation fan running; opening or closing car doors;
    skiing; dog barking; race car, auto racing; subway, metro, underground; underwater bubbling; car passing by;
    playing tennis; warbler chirping; helicopter; driving motorcycle; train wheels squealing; baby laughter;
    driving snowmobile; bird squawking; cuckoo bird calling; people whistling; shot football; playing tuning fork;
    dog howling; playing violin, fiddle; people eating; baltimore oriole calling; playing timbales; door slamming;
    people shuffling; typing on typewriter; magpie calling; playing harp; playing hammond organ; people eating
    apple; mosquito buzzing; playing oboe; playing volleyball; using sewing machines; electric grinder grinding;
    cutting hair with electric trimmers; splashing water; people sobbing; female singing; wind noise; car engine
    knocking; black capped chickadee calling; people screaming; cat growling; penguins braying; people coughing;
    metronome; train horning; goat bleating; playing tambourine; fox barking; airplane; firing cannon; thunder;
    smoke detector beeping; playing erhu; ice cracking; dog growling; playing saxophone; owl hooting; playing
    trumpet; sailing; waterfall burbling; machine gun shooting; baby babbling; playing synthesizer; donkey, ass
    braying; people cheering; playing shofar; playing hockey; playing banjo; cricket chirping; playing snare drum;
    ripping paper; child speech, kid speaking; crow cawing; sloshing water; playing zither; scuba diving; playing
    steelpan; goose honking; tapping guitar; spraying water; playing bass drum; printer printing; playing ukulele;
    ocean burbling; playing didgeridoo; sharpen knife; typing on computer keyboard; playing table tennis; rope
    skipping; playing marimba, xylophone; playing bugle; playing guiro; playing flute; tornado roaring; stream
    burbling; electric shaver, electric razor shaving; playing gong; eating with cutlery; playing piano; people
    giggling; chicken crowing; female speech, woman speaking; golf driving; frog croaking; people eating noodle;
    mynah bird singing; playing timpani; playing congas; dinosaurs bellowing; playing bass guitar; turkey gobbling;
    chipmunk chirping; chopping food; striking bowling; missile launch; squishing water; civil defense siren;
    blowtorch igniting; tractor digging; lighting firecrackers; playing theremin; train whistling; people nose
    blowing; car engine starting; lathe spinning; playing cello; motorboat, speedboat acceleration; playing
    vibraphone; playing washboard; playing cornet; pigeon, dove cooing; roller coaster running; opening or closing
    car electric windows; foghorn; coyote howling; hammering nails; toilet flushing; strike lighter; bird wings
    flapping; playing steel guitar, slide guitar; volcano explosion; people whispering; bowling impact; yodelling;
    firing muskets; raining; singing bowl; plastic bottle crushing; chimpanzee pant-hooting; playing electronic
    organ; chainsawing trees; dog baying; lawn mowing; people babbling; striking pool; eletric blender running;
    playing tabla; cap gun shooting; planing timber; air horn; sliding door; cell phone buzzing; sea waves; playing
    castanets; singing choir; people slapping; barn swallow calling; people hiccup; vacuum cleaner cleaning floors;
    playing lacrosse; bird chirping, tweeting; lip smacking; chopping wood; police car (siren); running electric
    fan; cattle, bovinae cowbell; people gargling; opening or closing drawers; playing djembe; skateboarding; cat
    purring; rowboat, canoe, kayak rowing; engine accelerating, revving, vroom; playing glockenspiel; popping
    popcorn; car engine idling; alarm clock ringing; dog whimpering; playing accordion; playing cymbal; male
    speech, man speaking; rapping; people farting
    """
)
