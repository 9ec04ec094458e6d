"""The commonest words of the commonest languages, which say little alone: articles, pronouns, prepositions, forms of to be and to have.

Short lists on purpose: for bag-of-words models, whose counts these words would rule. Never for a language model (clean.py says why).
"""

STOP_WORDS: dict[str, tuple[str, ...]] = {
    language: tuple(words.split())
    for language, words in {
        "en": "a an and are as at be been but by for from had has have he her his i if in into is it its me my no not of on or our she so than that the their them then there these they this to was we were what when which who will with would you your",
        "de": "aber als am an auch auf aus bei bin bis da das dass dem den der des die du durch ein eine einem einen einer eines er es für hat hatte ich ihr im in ist ja kann man mit nach nicht noch nur oder sein sich sie sind so über um und uns von vor war was wenn wie wir wird zu zum zur",
        "fr": "à au aux avec ce ces cette dans de des du elle en est et eux il ils je la le les leur lui ma mais me même mes mon ne nos notre nous on ou par pas pour plus qu que qui sa se ses son sont sur ta te tu un une vos votre vous y",
        "es": "a al algo como con cuando de del desde donde el ella ellos en entre era es esta este fue ha hay la las le les lo los más me mi muy no nos o para pero por porque que se ser si sin sobre son su sus también te tiene todo tu un una uno y ya yo",
        "it": "a ai al alla anche c che chi ci come con cui da dal dalla dei del della delle di e ed è era gli ha hanno i il in io la le lei li lo loro lui ma mi ne nel nella no noi non o per più quando questo se si sono su sul sulla ti tra tu un una uno voi",
        "pt": "a ao aos as até com como da das de dela dele do dos e é ela ele eles em entre era essa este eu foi há isso já lhe mais mas me meu muito na não nas no nos o os ou para pela pelo por quando que quem se sem ser seu sua são também te tem um uma você",
        "nl": "aan al als bij dan dat de den der deze die dit door een en er had heb heeft het hij hoe ik in is je kan maar me meer met mijn na naar niet nog nu of om ook op over te toch tot uit van voor was wat we wel wij zal ze zich zij zijn zo zou",
        "ru": "а без был была были было быть в вам вас во вот все всё вы где да для до его ее её если есть еще же за и из или им их к как когда кто ли мне мы на не него нет ни но о об он она они от по при с со так там то тоже только ты у уже что чтобы это я",
    }.items()
}
