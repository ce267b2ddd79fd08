%% SPDX-License-Identifier: Apache-2.0
%% Where markers stand in a function. README.md, "The marker", is the contract.
-module(scope_mark_place).
-export([function/2]).
-export_type([class/0, context/0]).

-include("scope_mark.hrl").

-type class() :: none | callback | function.
-type context() :: #{
    class := class(),
    handlers := class(),
    returns := boolean(),                              %% see scope_mark_tails:closable/4
    module := binary(),
    lines := boolean(),                                %% whether the module has line numbers
    imports := #{class() => non_neg_integer()},        %% of the markers' BIFs
    targets := scope_mark_tails:targets(),
    graph := scope_mark_tails:graph()
}.

-define(ENTRY, 1).
-define(EXIT, 2).
-define(CAUGHT, 3).
-define(CAUGHT_OLD, 4).
-define(TAIL, 5).

%% The pieces of one function, and how many markers of each kind are in it.
-spec function(#function{}, context()) -> {[scope_mark_undo:piece()], #{atom() => pos_integer()}}.
function(#function{code = [Info, Label | Body]} = F, #{class := Class} = Context0) ->
    %% The loader wants the label of a receive directly before loop_rec or wait.
    Context = case Body of
        [{Op, _, _} | _] when Op =:= ?LOOP_REC; Op =:= ?WAIT; Op =:= ?WAIT_TIMEOUT -> Context0#{class := none};
        _ -> Context0
    end,
    At = Context#{function => F, hash => hash(F, Context)},
    Entry = [{entry, insert(marker(Class, ?ENTRY, F#function.arity, At))} || maps:get(class, Context) =/= none],
    count([keep(Info), keep(Label)] ++ Entry ++ body(Body, none, At)).

count(Placed) ->
    Counts = lists:foldl(fun
        ({Kind, _}, Acc) when is_atom(Kind), Kind =/= keep -> maps:update_with(Kind, fun(N) -> N + 1 end, 1, Acc);
        (_, Acc) -> Acc
    end, #{}, Placed),
    {[piece(P) || P <- Placed], Counts}.

piece({keep, _} = Piece) -> Piece;
piece({_, Piece}) -> Piece.

hash(#function{name = Name, arity = Arity}, #{module := Module}) ->
    <<Hash:52, _/bits>> = erlang:md5([Module, $:, Name, $/, integer_to_list(Arity)]),
    Hash.

body([], _, _) -> [];
body([{Op, _, _} = Call, {?DEALLOCATE, _, _} = Free, {?RETURN, _, _} = Return | T], _, At)
  when Op =:= ?CALL_FUN; Op =:= ?CALL_FUN2 ->
    %% The loader makes a tail call of these three: only a callback that may have a frame gets a marker between them.
    fun_tail(Call, Free, Return, At) ++ body(T, Return, At);
body([{?RETURN, _, _} = Return | T], _, #{class := Class} = At) when Class =/= none ->
    [{return, insert(marker(Class, ?EXIT, 1, At))}, keep(Return) | body(T, Return, At)];
body([{?TRY_CASE, _, _} = Case | T], _, #{handlers := Class} = At) when Class =/= none ->
    [keep(Case), {caught, insert(marker(Class, ?CAUGHT, 3, At))} | body(T, Case, At)];
body([{?CATCH_END, _, _} = End | T], _, #{handlers := Class} = At) when Class =/= none ->
    [keep(End), {'catch', insert(marker(Class, ?CAUGHT_OLD, 1, At))} | body(T, End, At)];
body([Instruction | T], Before, #{targets := Targets} = At) ->
    tail(scope_mark_tails:target(Instruction, Targets), Instruction, Before, At) ++ body(T, Instruction, At).

fun_tail(Call, Free, Return, #{class := callback} = At) ->
    case closable(away, At) of
        true -> [keep(Call), keep(Free), {closed, insert(leaving(At))}, keep(Return)];
        false -> [open(Call, At), keep(Call), keep(Free), keep(Return)]
    end;
fun_tail(Call, Free, Return, _) ->
    [keep(Call), keep(Free), keep(Return)].

tail(returns, {_, _, Old} = Instruction, _, #{class := Class} = At) when Class =/= none ->
    [{bif, {put, Old, closed(Instruction, At)}}];
tail(To, {_, _, Old} = Instruction, Before, #{class := callback} = At) when is_integer(To); To =:= away; To =:= hands_over ->
    case closable(To, At) of
        true -> no_line(Before, At) ++ [{closed, {put, Old, closed(Instruction, At)}}];
        false -> [open(Instruction, At), keep(Instruction)]
    end;
tail(_, Instruction, _, _) ->
    [keep(Instruction)].

closable(To, #{function := F, returns := Returns, graph := Graph}) ->
    scope_mark_tails:closable(F#function.entry, To, Returns, Graph).

open(Call, At) ->
    {tail, insert(marker(callback, ?TAIL, free_register(Call), At))}.

%% The first X register above what the call takes.
free_register({?CALL_FUN, [{0, A}], _}) -> A + 1;
free_register({?CALL_FUN2, [_, {0, A}, {3, X}], _}) -> max(A, X + 1);
free_register({?CALL_FUN2, [_, {0, A}, _], _}) -> A;
free_register({?APPLY_LAST, [{0, A}, _], _}) -> A + 2;
free_register({_, [{0, A} | _], _}) -> A.

%% A call gets a line of its own, without a number, if it had none as a tail call: or the trace would show the one before it.
no_line({?LINE_INSTR, _, _}, _) -> [];
no_line(_, #{lines := false}) -> [];
no_line(_, _) -> [{line, insert(<<?LINE_INSTR, (u(0))/binary>>)}].

%% The tail call as call, marker and return.
closed({?CALL_ONLY, [{0, A}, {5, L}], _}, At) -> framed(A, <<?CALL, (u(A))/binary, (label(L))/binary>>, At);
closed({?CALL_EXT_ONLY, [{0, A}, {0, I}], _}, At) -> framed(A, <<?CALL_EXT, (u(A))/binary, (u(I))/binary>>, At);
closed({?CALL_LAST, [{0, A}, {5, L}, {0, D}], _}, At) ->
    answered(<<?CALL, (u(A))/binary, (label(L))/binary>>, D, At);
closed({?CALL_EXT_LAST, [{0, A}, {0, I}, {0, D}], _}, At) ->
    answered(<<?CALL_EXT, (u(A))/binary, (u(I))/binary>>, D, At);
closed({?APPLY_LAST, [{0, A}, {0, D}], _}, At) -> answered(<<?APPLY, (u(A))/binary>>, D, At);
closed(_, _) -> throw({bad_code, operand}).

framed(Live, Call, At) ->
    [<<?ALLOCATE, (u(0))/binary, (u(Live))/binary>>, answered(Call, 0, At)].

answered(Call, Frame, At) ->
    [Call, <<?DEALLOCATE, (u(Frame))/binary>>, leaving(At), ?RETURN].

leaving(#{class := Class} = At) ->
    marker(Class, ?EXIT, 1, At).

marker(Class, Kind, Register, #{hash := Hash, imports := Imports}) ->
    Id = scope_mark_term:write(1, Hash bsl 6 bor Kind),
    Import = u(maps:get(Class, Imports)),
    To = scope_mark_term:write(3, Register),
    case Class of
        callback -> <<?BIF1, (label(0))/binary, Import/binary, Id/binary, To/binary>>;
        function -> <<?BIF2, (label(0))/binary, Import/binary, Id/binary, Id/binary, To/binary>>
    end.

u(N) -> scope_mark_term:write(0, N).
label(N) -> scope_mark_term:write(5, N).

keep({_, _, Bytes}) -> {keep, Bytes}.
insert(New) -> {put, <<>>, New}.
