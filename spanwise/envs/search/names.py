"""The stock of words that people in the embedded world are named from.

First names and surnames share no word, so that a name reads one way only and a
retriever that ignores the order of words still tells two people apart.
"""

from __future__ import annotations

_FIRST_NAMES = """
Aaron Abel Ada Adele Agnes Aidan Alan Albert Alice Alma Amos Amy Andrew Angus Anita Anna
Anton Arthur Astrid Audrey Barbara Basil Beatrix Ben Bernard Bertha Blanche Boris Brenda Brian
Bruno Calvin Camilla Carla Cecil Cedric Celia Chloe Clara Claude Clive Conrad Cora Cyril
Daisy Daniel Daphne David Deborah Denis Diana Dinah Dominic Donald Dora Doris Duncan Edgar
Edith Edmund Elaine Eleanor Elias Ella Elmer Elsa Emil Emma Enid Eric Ernest Esther Ethel
Eugene Eva Felix Fiona Flora Florence Frances Frank Freda George Gerald Gilbert Gina Gloria
Gordon Grace Greta Gustav Hannah Harold Harriet Hazel Hector Helen Henry Herman Hilda Hugo
Ida Ingrid Irene Iris Isaac Ivan Ivor Jacob James Jane Jasper Jean Joan Joel Joseph Joyce
Judith Julia Karen Kate Keith Klaus Laura Lena Leo Leonard Lily Linda Lois Louis Lucy Luke
Mabel Magnus Marcus Marion Martha Martin Maud Max Melvin Mildred Miles Minna Miriam Moses
"""

_SURNAMES = """
Abbott Acker Alder Archer Arden Ash Avery Baker Banks Barlow Barnes Beck Bell Birch Black
Blake Bolt Booth Bowen Brand Briggs Brook Burke Burns Byrd Carver Chase Clay Cobb Cole Cook
Cooper Cox Crane Cross Curtis Dale Dalton Dawes Dean Dekker Dixon Doyle Drake Dunn Dyer Eaton
Elliot Ellis Emery Farrow Faulk Fenn Field Finch Fisher Fletcher Flint Forbes Foster Fowler
Frost Fuller Gale Garner Gibbs Glover Goodwin Gough Graves Gray Green Griffin Grove Hale Hall
Hardy Harper Hart Hawke Hayes Heath Hicks Hill Holt Hood Hooper Horn Howe Hudson Hume Hunt
Hurst Irving Jagger Jenner Jewell Jordan Keats Keller Kemp Kent Kirk Knight Knox Lamb Lane
Larkin Leach Lowe Lynch Mann Marsh Mason Mercer Mills Monk Moore Morton Moss Nash Neal Nolan
North Norton Oakes Olsen Osborn Page Palmer Parker Payne Penn Perry Pike Platt Pond Pope Porter
Potts Price Quill Rand Reed Rhodes Rigby Rowe Rudd Sadler Savage Sharp Shaw Snow Sparks Steele
"""

FIRST_NAMES: tuple[str, ...] = tuple(_FIRST_NAMES.split())
SURNAMES: tuple[str, ...] = tuple(_SURNAMES.split())
