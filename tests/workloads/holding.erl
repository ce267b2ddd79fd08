%% SPDX-License-Identifier: Apache-2.0
%% Holds what tests/kernel/test_held.py counts, and says what the node itself knows of it.
%%
%%   tables      answers with a line for each ETS table, then "end"
%%   grow N      N objects more in held_set
%%   many N      N tables more
%%   churn       two processes make and delete tables from now on
-module(holding).
-export([start/0, main/0, keeper/1]).

%% For erl -s holding.
start() -> spawn(?MODULE, main, []).

main() ->
    Keeper = spawn(?MODULE, keeper, [self()]),
    receive ready -> ok end,
    control:serve(fun(_) -> ok end, fun(Control, Words) -> command(Control, Keeper, Words) end).

command(Control, _, ["tables"]) ->
    [control:say(Control, tell(T)) || T <- ets:all()],
    "end";
command(_, _, ["churn"]) ->
    Churn = fun(Again) -> ets:delete(ets:new(churning, [])), Again(Again) end,
    [spawn(fun() -> Churn(Churn) end) || _ <- [1, 2]],
    "done";
command(_, Keeper, [Word, Count]) ->
    Keeper ! {Word, self(), list_to_integer(Count)},
    receive done -> "done" end.

keeper(Parent) ->
    register(keeper, self()),
    Set = ets:new(held_set, [named_table, public]),
    fill(Set, 1, 2300),
    Bag = ets:new(held_bag, [bag, protected]),
    ets:insert(Bag, [{N rem 7, N} || N <- lists:seq(1, 23)]),
    Duplicates = ets:new('held dup', [duplicate_bag, private, compressed]),
    ets:insert(Duplicates, [{a, 1}, {a, 1}, {a, 1}]),
    Tree = ets:new(held_tree, [ordered_set, {keypos, 2}]),
    ets:insert(Tree, [{x, N} || N <- lists:seq(1, 230)]),
    Spread = ets:new(held_spread, [public, {write_concurrency, true}, {decentralized_counters, true}]),
    ets:insert(Spread, [{N, N} || N <- lists:seq(1, 777)]),
    Forest = ets:new(held_forest, [ordered_set, public, {write_concurrency, true}]),
    ets:insert(Forest, [{N, N} || N <- lists:seq(1, 555)]),
    Parent ! ready,
    hold(Set, 2300).

hold(Set, Size) ->
    receive
        {"grow", From, Count} ->
            fill(Set, Size + 1, Size + Count),
            From ! done,
            hold(Set, Size + Count);
        {"many", From, Count} ->
            [ets:new(many, []) || _ <- lists:seq(1, Count)],
            From ! done,
            hold(Set, Size)
    end.

fill(Set, First, Last) -> ets:insert(Set, [{N, <<N:800>>} || N <- lists:seq(First, Last)]).

tell(T) ->
    [Memory | Rest] =
        [ets:info(T, Item) || Item <- [memory, named_table, owner, type, protection, size, keypos, compressed]],
    Name = lists:flatten(string:replace(atom_to_list(ets:info(T, name)), " ", "_", all)),
    io_lib:format("~ts ~p ~w ~w ~w ~w ~w ~w ~w", [Name, Memory * erlang:system_info(wordsize) | Rest]).
